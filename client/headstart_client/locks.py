"""Taking turns, among tasks of one event loop and among threads."""

import asyncio
import threading

AsyncLock = asyncio.Lock
Lock = threading.Lock
