"""The HTTP edge of minikong: what nginx 1.25 does for Kong, over asyncio."""
