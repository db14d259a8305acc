"""Replicas on Ray Serve: deployed, scaled and drained there, found and filled by any number of
routers. Only `app`, `policy` and `request_router` import Ray; a router needs none of it."""
