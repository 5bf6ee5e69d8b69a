"""All that speaks with a service, for asyncio. It is written here alone: the same for threads is generated from it."""
