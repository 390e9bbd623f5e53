"""The enrolment service: the one method that somebody with nothing but a join token may call."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from holdfast_common.wire import session_pb2, session_pb2_grpc
from holdfast_controller.service.agent_administration import AgentAdministration, EnrolmentRequest
from holdfast_controller.service.call_errors import Context

EXECUTOR_THREADS: Final = 4  # strangers wait for strangers, not for agents


class EnrolmentService(session_pb2_grpc.EnrolmentServicer):
    """Only on the event loop."""

    def __init__(self, administration: AgentAdministration) -> None:
        self._administration = administration
        self._executor = ThreadPoolExecutor(EXECUTOR_THREADS, thread_name_prefix="enrolment")

    async def Enrol(
        self, request: session_pb2.EnrolRequest, _context: Context
    ) -> session_pb2.EnrolReply:
        """A certificate for a token."""
        asked = EnrolmentRequest(
            secret=request.token,
            certificate_request_pem=request.certificate_request_pem,
            signing_public_key=request.signing_public_key,
            role=request.role,
            host_name=request.host_name,
        )
        enrolled = await asyncio.get_running_loop().run_in_executor(
            self._executor, self._administration.enrol, asked
        )
        return session_pb2.EnrolReply(
            agent_id=enrolled.agent_id,
            certificate_pem=enrolled.certificate_pem,
            authority_pem=enrolled.authority_pem,
            session_address=enrolled.session_address,
        )
