"""Kong's PDK: one module per namespace, all of them in `registry.FUNCTIONS`."""

from minikong.pdk import (  # noqa: F401 -- they register their functions
    client,
    ctx,
    ip,
    log,
    nginx,
    node,
    request,
    response,
    service,
    service_request,
    service_response,
    vault,
)
from minikong.pdk.registry import EXPOSED, FUNCTIONS, TABLES, Exit, call

__all__ = ["EXPOSED", "FUNCTIONS", "TABLES", "Exit", "call"]
