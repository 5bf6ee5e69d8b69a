# Generated from headstart_client/_async/__init__.py by: python client/generate_sync.py
"""All that speaks with a service, for time. It is written here alone: the same for threads is generated from it."""
