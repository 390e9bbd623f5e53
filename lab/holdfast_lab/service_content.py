"""The service instance, its managers, logging in and out."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from pyVmomi import vim, vmodl

from holdfast_lab.faults import SoapFault, invalid_argument
from holdfast_lab.hosts import HOST_BUILD, HOST_VERSION
from holdfast_lab.lab_clock import utc_now
from holdfast_lab.lab_object import LabObject, ManagedEntity, wire_property
from holdfast_lab.method_registry import Call, soap_method
from holdfast_lab.performance import PerformanceManager
from holdfast_lab.soap import API_VERSION

if TYPE_CHECKING:
    from holdfast_lab.lab import Lab
    from holdfast_lab.sessions import Session

TASKS_SHOWN_MAX = 30


class ServiceInstance(LabObject):
    """Where every client begins."""

    kind = vim.ServiceInstance

    def __init__(self, lab: Lab, root_folder: ManagedEntity) -> None:
        super().__init__(lab, "ServiceInstance")
        self.root_folder = root_folder
        self.names = ManagerNames(lab.mode)

    @wire_property("serverClock")
    def server_clock(self) -> object:
        return server_time(self.lab)

    @wire_property("capability")
    def capability(self) -> object:
        return vim.Capability(
            provisioningSupported=True,
            multiHostSupported=self.lab.mode == "vcenter",
            userShellAccessSupported=False,
        )

    def about(self) -> vim.AboutInfo:
        """Who the server says it is."""
        if self.lab.mode == "host":
            return self.lab.hosts()[0].product()
        return vim.AboutInfo(
            name="VMware vCenter Server",
            fullName=f"VMware vCenter Server {HOST_VERSION} build-{HOST_BUILD} (lab)",
            vendor="VMware, Inc.",
            version=HOST_VERSION,
            build=HOST_BUILD,
            localeVersion="INTL",
            localeBuild="000",
            osType="linux-x64",
            productLineId="vpx",
            apiType="VirtualCenter",
            apiVersion=API_VERSION,
            instanceUuid=self.lab.instance_uuid,
            licenseProductName="VMware VirtualCenter Server",
            licenseProductVersion="8.0",
        )

    @wire_property("content")
    def content(self) -> vim.ServiceInstanceContent:
        names = self.names
        return vim.ServiceInstanceContent(
            rootFolder=self.root_folder.ref,
            about=self.about(),
            propertyCollector=vmodl.query.PropertyCollector(names.property_collector, None),
            viewManager=vim.view.ViewManager(names.view_manager, None),
            sessionManager=vim.SessionManager(names.session_manager, None),
            authorizationManager=vim.AuthorizationManager(names.authorization_manager, None),
            taskManager=vim.TaskManager(names.task_manager, None),
            searchIndex=vim.SearchIndex(names.search_index, None),
            fileManager=vim.FileManager(names.file_manager, None),
            virtualDiskManager=vim.VirtualDiskManager(names.virtual_disk_manager, None),
            ovfManager=vim.OvfManager(names.ovf_manager, None),
            perfManager=vim.PerformanceManager(names.performance_manager, None),
        )


class ManagerNames:
    """The ids of the managers, which differ between vCenter and a single host."""

    def __init__(self, mode: str) -> None:
        host = mode == "host"
        self.property_collector = "ha-property-collector" if host else "propertyCollector"
        self.view_manager = "ViewManager"
        self.session_manager = "ha-sessionmgr" if host else "SessionManager"
        self.authorization_manager = "ha-authmgr" if host else "AuthorizationManager"
        self.task_manager = "ha-taskmgr" if host else "TaskManager"
        self.search_index = "ha-searchindex" if host else "SearchIndex"
        self.file_manager = "ha-nfc-file-manager" if host else "FileManager"
        self.virtual_disk_manager = "ha-vdiskmanager" if host else "virtualDiskManager"
        self.ovf_manager = "ha-ovf-manager" if host else "OvfManager"
        self.performance_manager = "ha-perfmgr" if host else "PerfMgr"


class SessionManager(LabObject):
    """Sessions as clients see them."""

    kind = vim.SessionManager

    def read(self, name: str, session: Session | None) -> object:
        """As for every object; the current session is the reader's own."""
        if name == "currentSession":
            return session.describe() if session and session.user else None
        return super().read(name, session)

    @wire_property("currentSession")
    def current_session(self) -> object:
        """Whose it is, only ``read`` knows."""
        return None

    @wire_property("sessionList")
    def session_list(self) -> object:
        return [each.describe() for each in self.lab.sessions.logged_in()]

    @wire_property("defaultLocale")
    def default_locale(self) -> object:
        return "en"


class TaskManager(LabObject):
    """Recent tasks."""

    kind = vim.TaskManager

    @wire_property("recentTask")
    def recent_tasks(self) -> object:
        return [each.ref for each in self.lab.tasks.known[-TASKS_SHOWN_MAX:]]

    @wire_property("maxCollector")
    def collectors_max(self) -> object:
        return 32


class AuthorizationManager(LabObject):
    """Which rights a caller has."""

    kind = vim.AuthorizationManager


class PlainManager(LabObject):
    """A manager without properties: its methods are registered elsewhere."""


class ViewManager(PlainManager):
    """Makes views; see ``views``."""

    kind = vim.view.ViewManager


class SearchIndexObject(PlainManager):
    """Finds entities; see ``search_index``."""

    kind = vim.SearchIndex


class FileManager(PlainManager):
    """Files on datastores; see ``datastore_files``."""

    kind = vim.FileManager


class VirtualDiskManager(PlainManager):
    """Virtual disks as files; see ``datastore_files``."""

    kind = vim.VirtualDiskManager


class OvfManager(PlainManager):
    """Descriptions of VMs for transfer."""

    kind = vim.OvfManager


def add_service_objects(lab: Lab, root_folder: ManagedEntity) -> ServiceInstance:
    """Make the service instance and its managers. Needs the lock."""
    service = ServiceInstance(lab, root_folder)
    names = service.names
    for made in (
        service,
        SessionManager(lab, names.session_manager),
        TaskManager(lab, names.task_manager),
        AuthorizationManager(lab, names.authorization_manager),
        ViewManager(lab, names.view_manager),
        SearchIndexObject(lab, names.search_index),
        FileManager(lab, names.file_manager),
        VirtualDiskManager(lab, names.virtual_disk_manager),
        OvfManager(lab, names.ovf_manager),
        PerformanceManager(lab, names.performance_manager),
    ):
        lab.add(made)
    return service


@soap_method("RetrieveServiceContent")
def retrieve_service_content(call: Call) -> object:
    return call.lab.get(call.this, ServiceInstance).content()


@soap_method("CurrentTime")
def current_time(call: Call) -> object:
    return server_time(call.lab)


def server_time(lab: Lab) -> datetime:
    """The server's own clock, which may be wrong."""
    return utc_now() + timedelta(seconds=lab.clock_ahead_seconds)


@soap_method("Login")
def login(call: Call) -> object:
    return call.lab.sessions.login(
        call.session, call.arguments.text("userName"), call.arguments.text("password")
    )


@soap_method("Logout")
def logout(call: Call) -> object:
    call.lab.sessions.end(call.session)
    return None


@soap_method("SessionIsActive")
def session_is_active(call: Call) -> object:
    key, user = call.arguments.text("sessionID"), call.arguments.text("userName")
    return any(
        each.key == key and each.user is not None and each.user.name == user
        for each in call.lab.sessions.logged_in()
    )


@soap_method("TerminateSession")
def terminate_session(call: Call) -> object:
    keys = call.arguments.sequence("sessionId", str)
    if call.session.key in keys:
        raise invalid_argument("sessionId", "a session cannot terminate itself")
    for each in call.lab.sessions.logged_in():
        if each.key in keys:
            call.lab.sessions.end(each)
    return None


@soap_method("AcquireGenericServiceTicket")
def acquire_generic_service_ticket(call: Call) -> object:
    spec = call.arguments.required("spec", vim.SessionManager.ServiceRequestSpec)
    if not isinstance(spec, vim.SessionManager.HttpServiceRequestSpec):
        raise SoapFault(vmodl.fault.InvalidType(argument="spec"), "only HTTP requests")
    ticket = call.lab.sessions.issue_ticket(
        call.session, path=spec.url or "", method=str(spec.method or "httpGet")
    )
    return vim.SessionManager.GenericServiceTicket(
        id=ticket.identifier,
        hostName=call.lab.address.rsplit(":", 1)[0],
        sslThumbprint=call.lab.certificate_sha1,
    )


@soap_method("HasPrivilegeOnEntities")
def has_privilege_on_entities(call: Call) -> object:
    granted = _rights_of_session(call)
    wanted = call.arguments.sequence("privId", str)
    return [
        vim.AuthorizationManager.EntityPrivilege(
            entity=entity,
            privAvailability=[
                vim.AuthorizationManager.PrivilegeAvailability(privId=each, isGranted=granted(each))
                for each in wanted
            ],
        )
        for entity in call.arguments.sequence("entity", vim.ManagedEntity)
    ]


@soap_method("HasPrivilegeOnEntity")
def has_privilege_on_entity(call: Call) -> object:
    granted = _rights_of_session(call)
    return [granted(each) for each in call.arguments.sequence("privId", str)]


def _rights_of_session(call: Call) -> Callable[[str], bool]:
    key = call.arguments.text("sessionId")
    for each in call.lab.sessions.logged_in():
        if each.key == key and each.user is not None:
            return each.user.may
    raise invalid_argument("sessionId")
