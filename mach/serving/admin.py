"""``mach.v1.AdminService``: loading, switching and dropping bundles from outside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mach.serving.bundles import BundleHost
from mach.v1 import admin_pb2, admin_pb2_grpc

if TYPE_CHECKING:
    from mach.bundle import Bundle

__all__ = ["ADMIN_SERVICE", "AdminServicer"]

ADMIN_SERVICE: str = admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name


class AdminServicer(admin_pb2_grpc.AdminServiceServicer):
    """Calls the host, and leaves errors to the interceptor."""

    def __init__(self, host: BundleHost[Any]) -> None:
        self._host = host

    def _state(self, bundle: Bundle) -> admin_pb2.BundleState:
        return admin_pb2.BundleState(
            bundle_version=bundle.version,
            path=str(bundle.path),
            active=bundle.version == self._host.versions[0],
        )

    async def LoadBundle(  # noqa: N802 - named by the protocol
        self, request: admin_pb2.LoadBundleRequest, context: Any
    ) -> admin_pb2.LoadBundleResponse:
        """Load beside the active one."""
        held = await self._host.load(request.path, request.bundle_version)
        return admin_pb2.LoadBundleResponse(bundle=self._state(held.bundle))

    async def ActivateBundle(  # noqa: N802
        self, request: admin_pb2.ActivateBundleRequest, context: Any
    ) -> admin_pb2.ActivateBundleResponse:
        """Switch."""
        await self._host.prepare(request.bundle_version)
        previous = self._host.activate(request.bundle_version)
        return admin_pb2.ActivateBundleResponse(previous_version=previous)

    async def UnloadBundle(  # noqa: N802
        self, request: admin_pb2.UnloadBundleRequest, context: Any
    ) -> admin_pb2.UnloadBundleResponse:
        """Drop the one on standby."""
        self._host.unload(request.bundle_version)
        return admin_pb2.UnloadBundleResponse()

    async def DescribeBundles(  # noqa: N802
        self, request: admin_pb2.DescribeBundlesRequest, context: Any
    ) -> admin_pb2.DescribeBundlesResponse:
        """What is loaded."""
        held = (self._host.active, self._host.standby)
        return admin_pb2.DescribeBundlesResponse(
            bundles=[self._state(one.bundle) for one in held if one is not None]
        )
