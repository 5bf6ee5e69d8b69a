"""The Open Inference Protocol, version 2, at `/v2`: for clients of model servers."""
