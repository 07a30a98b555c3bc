"""Wheel, sdist and editable installs all carry `twistd mta`; the example plugins carry messages.

Each is built and installed in a fresh environment. Prints PASS and FAIL lines for `make check`.
"""

from __future__ import annotations

import glob
import os
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from environments import (
    ROOT,
    Daemon,
    Environment,
    Failed,
    copy_sources,
    free_port,
    greets,
    report,
)

PLUGIN_LINES = 60


def expect(holds: object, fact: str) -> None:
    if not holds:
        raise Failed(fact)


class Packaging:
    """Everything is built once, below `work`."""

    def __init__(self, work: str) -> None:
        self._work = work
        self._dist = os.path.join(work, "dist")
        self._source = copy_sources(os.path.join(work, "source"))
        # What running from a checkout leaves behind must not be shipped.
        for place in ("mta/plugins", "twisted/plugins"):
            with open(os.path.join(self._source, place, "dropin.cache"), "wb") as file:
                file.write(b"stale")

    def checks(self) -> list[tuple[str, Callable[[], None]]]:
        found: list[tuple[str, Callable[[], None]]] = [
            ("packaging-build", self.build),
            ("packaging-contents", self.contents),
        ]
        for form in ("wheel", "sdist", "editable"):
            found.append((f"packaging-{form}", lambda form=form: self.installed(form)))  # type: ignore[misc]
        for name, run in (
            ("by-sender", self.by_sender),
            ("flag-file", self.flag_file),
            ("sender-limit", self.sender_limit),
        ):
            found.append((f"example-{name}", lambda name=name, run=run: self.example(name, run)))  # type: ignore[misc]
        return found

    # -- the MTA itself

    def build(self) -> None:
        builder = Environment(os.path.join(self._work, "builder"))
        for form in ("--wheel", "--sdist"):
            builder.run(
                *(builder.python, "-m", "build", "--no-isolation", form),
                *("--outdir", self._dist, self._source),
            )

    def _one(self, pattern: str) -> str:
        found = glob.glob(os.path.join(self._dist, pattern))
        expect(len(found) == 1, f"{pattern}: {len(found)} were built")
        return found[0]

    def contents(self) -> None:
        with zipfile.ZipFile(self._one("mta-*.whl")) as wheel:
            in_wheel = set(wheel.namelist())
        with tarfile.open(self._one("mta-*.tar.gz")) as sdist:
            in_sdist = {name.partition("/")[2] for name in sdist.getnames()}
        for name in (
            "mta/service.py",
            "mta/tap.py",
            "mta/plugins/builtin.py",
            "twisted/plugins/mta_plugin.py",
        ):
            expect(name in in_wheel, f"the wheel lacks {name}")
            expect(name in in_sdist, f"the sdist lacks {name}")
        for name in sorted(in_wheel | in_sdist):
            base = os.path.basename(name)
            expect(base != "dropin.cache", f"{name} is shipped")
            expect(not name.endswith(".pyc"), f"{name} is shipped")
        for name in sorted(in_wheel):
            top = name.partition("/")[0]
            expect(top in {"mta", "twisted"} or top.endswith(".dist-info"), f"the wheel has {name}")
            expect(not name.startswith("twisted/") or name == "twisted/plugins/mta_plugin.py", name)

    def installed(self, form: str) -> None:
        environment = Environment(os.path.join(self._work, form))
        self._install(environment, form)
        listed = environment.run(environment.bin("twistd"), "--help")
        expect(
            any(line.split()[:1] == ["mta"] for line in listed.splitlines()),
            "twistd --help does not list mta",
        )
        helped = environment.run(environment.bin("twistd"), "mta", "--help")
        expect("--config=" in helped, "twistd mta --help does not name --config")
        code = "import mta, sys; sys.stdout.write(mta.__path__[0])"
        place = environment.run(environment.python, "-c", code)
        expected = self._source if form == "editable" else environment.path
        expect(place.startswith(expected), f"mta is imported from {place}")
        text = environment.run(environment.python, "-m", "mta.config", "--default")
        file = os.path.join(environment.path, "mta.yaml")
        with open(file, "w") as written:
            written.write(text)
        environment.run(environment.python, "-m", "mta.config", file)
        plugins = environment.run(environment.bin("mta"), "plugins")
        for word in ("least-cost", "standalone", "maildir"):
            expect(word in plugins, f"mta plugins does not list {word}: {plugins[:200]}")
        for script in ("mta", "mta-mailq", "mta-sendmail"):
            expect(os.access(environment.bin(script), os.X_OK), f"no console script {script}")

    def _install(self, environment: Environment, form: str) -> None:
        if form == "wheel":
            environment.install(self._one("mta-*.whl"))
        elif form == "sdist":
            environment.install(self._one("mta-*.tar.gz"))
        else:
            environment.install("--editable", self._source)

    # -- the examples

    def example(self, name: str, run: Callable[[Site], None]) -> None:
        """Build the example as a wheel, install it beside the MTA, and send messages through it."""
        source = os.path.join(ROOT, "examples", "plugins", name)
        modules = glob.glob(os.path.join(source, "mta", "plugins", "*.py"))
        expect(len(modules) == 1, f"{name} has {len(modules)} plugin modules")
        with open(modules[0]) as file:
            lines = len(file.readlines())
        expect(lines < PLUGIN_LINES, f"the plugin module has {lines} lines")
        for package in ("mta", "mta/plugins"):
            stray = os.path.join(source, package, "__init__.py")
            expect(not os.path.exists(stray), f"{stray} would hide the MTA's own modules")
        environment = Environment(os.path.join(self._work, name))
        copy = os.path.join(environment.path, "source")
        environment.run("cp", "-r", source, copy)
        environment.run(
            *(environment.python, "-m", "build", "--no-isolation", "--wheel"),
            *("--outdir", self._dist, copy),
        )
        self._install(environment, "wheel")
        environment.install(self._one(f"mta_{name.replace('-', '_')}-*.whl"))
        plugins = environment.run(environment.bin("mta"), "plugins")
        expect(f"mta-{name}" in plugins, f"mta plugins does not name the distribution: {plugins}")
        site = Site(environment)
        try:
            run(site)
        finally:
            site.stop()

    def by_sender(self, site: Site) -> None:
        """Two connectors take everything; the chosen sender's mail goes over the dearer one."""
        site.configure(
            "cluster: {resource: standalone}",
            "routing: {policy: by-sender, senders: [news@example.com], connector: slow}",
            connectors="""\
  - {name: usual, kind: maildir, directory: DIR/usual, address-spaces: [{domain: "*", cost: 10}]}
  - {name: slow, kind: maildir, directory: DIR/slow, address-spaces: [{domain: "*", cost: 50}]}
""",
        )
        site.start()
        site.send("news@example.com", status=0)
        site.send("boss@example.com", status=0)
        site.expect_mail("slow", 1)
        site.expect_mail("usual", 1)

    def flag_file(self, site: Site) -> None:
        """While the file names another node nothing listens; then it names us."""
        site.configure(
            "cluster: {resource: flag-file, file: DIR/owner}",
            "node: {name: node-a, state-directory: DIR/state}",
        )
        site.write("owner", "node-b\n")
        site.start(online=False)
        expect(not greets(site.port), "it listens while the file names another node")
        site.write("owner", "node-a\n")
        site.wait_until_online()
        site.send("boss@example.com", status=0)
        site.expect_mail("mail", 1)
        site.write("owner", "node-b\n")
        site.wait_until_offline()

    def sender_limit(self, site: Site) -> None:
        """The second recipient of a sender is asked to come again later; another sender is not."""
        site.configure(
            "cluster: {resource: standalone}",
            "policies: [{policy: sender-limit, recipients: 1}]",
        )
        site.start()
        site.send("news@example.com", status=0)
        site.send("news@example.com", status=os.EX_TEMPFAIL)
        site.send("boss@example.com", status=0)
        site.expect_mail("mail", 2)


class Site:
    """One MTA of an environment, below a short path: UNIX sockets have 107 octets."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._directory = tempfile.TemporaryDirectory(prefix="mta-check-")
        self.port = free_port()
        self._daemon: Daemon | None = None

    def path(self, name: str) -> str:
        return os.path.join(self._directory.name, name)

    def write(self, name: str, text: str) -> None:
        with open(self.path(name), "w") as file:
            file.write(text.replace("DIR", self._directory.name))

    def configure(self, *blocks: str, connectors: str = "") -> None:
        default = '  - {name: local, kind: maildir, directory: DIR/mail, address-spaces: [{domain: "*"}]}\n'
        self.write(
            "mta.yaml",
            "virtual-server: {network-name: mail.example.org, addresses: [127.0.0.1]}\n"
            "postmaster: postmaster@example.org\n"
            "spool: {directory: DIR/spool, sharing: none, initialise: true}\n"
            f"listeners: [{{kind: smtp, port: {self.port}}}]\n"
            f"connectors:\n{connectors or default}"
            "admin: {socket: DIR/c.sock, submit-socket: DIR/s.sock}\n"
            + "".join(f"{block}\n" for block in blocks)
            + (
                ""
                if any(b.startswith("node:") for b in blocks)
                else "node: {state-directory: DIR/state}\n"
            ),
        )
        os.makedirs(self.path("spool"), exist_ok=True)
        self._environment.run(self._environment.bin("mta"), "check-config", self.path("mta.yaml"))

    def start(self, online: bool = True) -> None:
        self._daemon = Daemon(
            self._environment,
            *(self._environment.bin("twistd"), "-n", "--pidfile=", "mta"),
            *("--config", self.path("mta.yaml")),
            cwd=self._directory.name,
        )
        if online:
            self.wait_until_online()
        else:
            self._daemon.wait_for(lambda: os.path.exists(self.path("c.sock")), "started")

    def wait_until_online(self) -> None:
        assert self._daemon is not None
        self._daemon.wait_for(lambda: greets(self.port), f"listening on port {self.port}")

    def wait_until_offline(self) -> None:
        assert self._daemon is not None
        self._daemon.wait_for(lambda: not greets(self.port), "silent")

    def send(self, sender: str, status: int) -> None:
        self._environment.run(
            *(self._environment.bin("mta"), "send", "--config", self.path("mta.yaml")),
            *("--from", sender, "--to", "you@example.com", "--subject", "hello", "--body", "hello"),
            status=status,
        )

    def expect_mail(self, maildir: str, number: int) -> None:
        assert self._daemon is not None
        new = self.path(os.path.join(maildir, "new"))
        self._daemon.wait_for(
            lambda: os.path.isdir(new) and len(os.listdir(new)) == number,
            f"{number} messages in {maildir}",
        )

    def stop(self) -> None:
        if self._daemon is not None:
            self._daemon.stop()
        self._directory.cleanup()


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="mta-packaging-") as work:
        return report(Packaging(work).checks())


if __name__ == "__main__":
    sys.exit(main())
