"""What systemd-logind asks of systemd (pid 1), for a logind in namespaces of its own: is there a poweroff.target, start it, pass
on a signal. Starts nothing: says what was asked, with the time, and after a while that the job is over."""
import os
import signal
import sys
import time

import dbus
import dbus.service
from dbus.mainloop.glib import DBusGMainLoop
from gi.repository import GLib

JOB = dbus.ObjectPath("/org/freedesktop/systemd1/job/1")
MANAGER = "org.freedesktop.systemd1.Manager"
after, logind = int(sys.argv[1]), int(sys.argv[2])


class Manager(dbus.service.Object):
    @dbus.service.method(MANAGER)
    def Subscribe(self):
        pass

    @dbus.service.method(MANAGER, in_signature="ss", out_signature="o")
    def StartUnit(self, unit, mode):
        print("StartUnit", unit, time.time(), flush=True)
        GLib.timeout_add_seconds(after, lambda: self.JobRemoved(1, JOB, unit, "done"))
        return JOB

    @dbus.service.method(MANAGER, in_signature="ssi")
    def KillUnit(self, unit, who, number):
        print("KillUnit", unit, number, flush=True)
        assert unit == "systemd-logind.service" and number == signal.SIGHUP
        os.kill(logind, number)

    @dbus.service.signal(MANAGER, signature="uoss")
    def JobRemoved(self, number, job, unit, result):
        print("JobRemoved", unit, flush=True)


class Unit(dbus.service.Object):
    @dbus.service.method(dbus.PROPERTIES_IFACE, in_signature="ss", out_signature="v")
    def Get(self, interface, name):
        return "loaded" if name == "LoadState" else ""


DBusGMainLoop(set_as_default=True)
bus = dbus.SystemBus()
name = dbus.service.BusName("org.freedesktop.systemd1", bus)
manager = Manager(bus, "/org/freedesktop/systemd1")
unit = Unit(bus, "/org/freedesktop/systemd1/unit/poweroff_2etarget")
print("up", flush=True)
GLib.MainLoop().run()
