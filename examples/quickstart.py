"""From a family of tasks to actions, with nothing but the client. A server must run: ``make serve``.

The tasks are carts whose motor may push the wrong way round. No policy solves both kinds without trying the
motor first, so what is learned is how to adapt: 20 episodes on a cart it has never seen must do.
"""

from headstart_client import Client

FAMILY = "cartpole-reversed"
MODEL = "quickstart"


def main() -> None:
    """Register, meta-train, promote, adapt, act."""
    with Client() as client:
        training = client.families.sample(FAMILY, 20, split="train")
        held_out = client.families.sample(FAMILY, 1, split="test")[0]
        print(f"registered {len(training)} tasks to train on; {held_out.name} is held out")

        run = client.runs.create(
            MODEL,
            tasks={"family": FAMILY, "split": "train"},
            learner={
                "name": "maml",
                "inner_steps": 1,
                "inner_learning_rate": 1.0,
                "tasks_per_iteration": 20,
                "episodes_per_task": 20,
            },
            stop={"seconds": 20},
        ).wait(progress=True)
        version = client.versions.get(f"{MODEL}/{run.version}")
        client.aliases.set(MODEL, "champion", version)
        print(f"{version.reference} is now {MODEL}@champion")

        adaptation = client.adapt(f"{MODEL}@champion", held_out, method="inner-loop", steps=1, episodes=20)
        if adaptation.before and adaptation.after:
            before, after = adaptation.before.mean_return, adaptation.after.mean_return
            print(f"mean return on {held_out.name}: {before:.1f} before adapting, {after:.1f} after")

        action = client.act(adaptation, [0.01, 0.0, 0.02, 0.0])
        print(f"policy {adaptation.policy} pushes {'right' if action.actions[0] == 1 else 'left'}")


if __name__ == "__main__":
    main()
