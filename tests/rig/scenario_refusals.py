"""What cannot work is refused by name: one line each, the fitting exit code, nothing half started."""

from __future__ import annotations

import os
import re
import time

from tests.rig.ground import NODE, VIRTUAL, VIRTUAL6, expect, run, wait_until
from tests.rig.node import Rig
from tests.rig.peers import Sink, source

MISTAKES = """\
virtual-server:
  netwrok-name: bridgehead.example.org
  addresses: [10.9.0.300]
postmaster: nobody
cluster: {resource: interfaze, grace: soon}
spool: {store: log, directory: /tmp/spool, reserve: much}
listeners:
  - {kind: smtp, port: 99999}
connectors:
  - {name: a, kind: smtp, bridgeheads: ["1.2.3.4.5:25"], address-spaces: [{domain: "*", cost: 500}]}
queue: {lifetime: 5 years}
frobnicate: yes
"""


def _refused(rig: Rig, status: int, *words: str) -> str:
    """The MTA ends by itself with `status`, says `words`, and prints no traceback."""
    mta = rig.start_mta(wait=False)
    wait_until(lambda: not mta.is_running, 15, "it was not refused")
    log = mta.log()
    expect(
        mta.popen.returncode == status, f"status {mta.popen.returncode}, not {status}: {log[-400:]}"
    )
    expect("Traceback" not in log, f"a traceback: {log[-600:]}")
    for word in words:
        expect(word in log, f"it does not say {word!r}: {log[-400:]}")
    return log


def scenario_ten_mistakes(rig: Rig) -> None:
    """A configuration with ten mistakes names each with its line in one run, and nothing starts."""
    rig.configure()
    with open(rig.configuration, "w", encoding="utf-8") as file:
        file.write(MISTAKES)
    log = _refused(rig, os.EX_CONFIG, "did you mean network-name?")
    lines = [line for line in log.splitlines() if re.match(r"\S+mta\.yaml:\d+:\d+: ", line)]
    expect(len(lines) >= 10, f"only {len(lines)} mistakes were named: {log}")
    checked = rig.command("check-config", rig.configuration, check=False)
    expect(checked.returncode == os.EX_CONFIG, f"check-config ended with {checked.returncode}")
    said = checked.stdout + checked.stderr
    for line in lines:
        expect(line in said, f"check-config does not say {line!r}")
    rig.mta = rig.processes[-1]


def scenario_wrong_names_are_refused(rig: Rig) -> None:
    """localhost, an unqualified name and the node's own name are no network names: exit 78."""
    rig.configure()
    with open(rig.configuration, encoding="utf-8") as file:
        text = file.read()
    for name, node in (
        ("localhost", "node-a"),
        ("bridgehead", "node-a"),
        ("bridgehead.example.org", "bridgehead.example.org"),
    ):
        with open(rig.configuration, "w", encoding="utf-8") as file:
            named = text.replace("network-name: bridgehead.example.org", f"network-name: {name}")
            file.write(named.replace("node: {name: node-a", f"node: {{name: {node}"))
        _refused(rig, os.EX_CONFIG, name)


def scenario_bad_spools(rig: Rig) -> None:
    """An empty mount point, a read-only spool, another version's: standby with the reason, then online."""
    disk = rig.small_disk("disk", 300)
    spool = os.path.join(disk, "spool")
    small = "reserve: 32MiB\nsegment-size: 8MiB"
    # A first life makes the spool on its own file system and leaves one message in it.
    rig.online(spool=spool, store=small, queue="backoff: [1s]\ndestination-retry: 1s")
    source(rig, 1)
    rig.process().stop(30)
    # Not mounted: an empty directory where the spool should be.
    run(["umount", disk])
    os.mkdir(spool)
    _standby_because(rig, spool)
    os.rmdir(spool)
    # Read-only.
    image = os.path.join(rig.directory, "disk.img")
    run(["mount", "-o", "loop,ro", image, disk])
    _standby_because(rig, "ead-only")
    run(["umount", disk])
    # Another version.
    run(["mount", "-o", "loop", image, disk])
    format_file = os.path.join(spool, "format")
    with open(format_file, "rb") as file:
        good = file.read()
    with open(format_file, "wb") as file:
        file.write(re.sub(rb"\d+", b"999", good))
    _standby_because(rig, "999")
    with open(format_file, "wb") as file:
        file.write(good)
    sink = Sink(rig).start()
    rig.restart()
    sink.wait(1, 20)


def scenario_damaged_spool(rig: Rig) -> None:
    """An epoch file that reads empty ends its owner by name; a damaged checkpoint costs nothing; all of them damaged are refused until `mta spool recover`."""
    store = "reserve: 32MiB\nsegment-size: 8MiB"
    rig.online(
        store=store, cluster="takeover-after: 2s", queue="backoff: [1s]\ndestination-retry: 1s"
    )
    time.sleep(1.5)  # who loses its tenure within a second of its start does not begin anew
    # Idle, an owner reads its epoch again every 250 ms.
    epoch = os.path.join(rig.spool, "epoch", "1")
    begun = time.monotonic()
    os.truncate(epoch, 0)
    rig.wait_log(f"{epoch} is damaged or empty")
    rig.note(f"empty epoch file: noticed after {(time.monotonic() - begun) * 1000:.0f} ms")
    rig.wait_log("the file of epoch 1 is damaged or empty, so nobody knows who holds it")
    rig.wait_online()
    expect(rig.status()["epoch"] == 2, "it did not go above the damaged epoch")
    source(rig, 1)  # the bridgehead is not there: it stays
    _holds_one(rig)
    # The newest checkpoint is damaged: the older one serves.
    rig.process().kill()
    newest = _checkpoints(rig)[-1]
    _damage(newest)
    rig.restart()
    rig.wait_log(f"{os.path.basename(newest)} cannot be used")
    _holds_one(rig)
    # All of them: refused by name, with what to do.
    rig.process().kill()
    for path in _checkpoints(rig):
        _damage(path)
    _standby_because(rig, "mta spool recover")
    done = rig.command("spool", "recover", rig.spool)
    expect("1 message" in done.stdout, f"recover said {done.stdout!r}")
    sink = Sink(rig).start()
    rig.restart()
    sink.wait(1, 20)
    # What forgets is refused by the type that statfs tells.
    rig.process().stop(30)
    rig.configure(spool="/run/spool", store=store)
    _standby_because(rig, "tmpfs")
    rig.configure(store=store, spool=os.path.join(rig.directory, "spool"))
    rig.restart()


def _holds_one(rig: Rig) -> None:
    queued = rig.status()["queue"]["messages"]
    expect(queued == 1, f"{queued} messages are queued")


def _checkpoints(rig: Rig) -> list[str]:
    """Oldest first. Named EPOCH.NUMBER."""
    directory = os.path.join(rig.spool, "ckpt")
    names = [name for name in os.listdir(directory) if re.fullmatch(r"\d+\.\d+", name)]
    names.sort(key=lambda name: tuple(map(int, name.split("."))))
    return [os.path.join(directory, name) for name in names]


def _damage(path: str) -> None:
    with open(path, "r+b") as file:
        file.seek(os.path.getsize(path) // 2)
        octet = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([octet[0] ^ 0x10]))


def _standby_because(rig: Rig, word: str) -> None:
    """Either refused at once or standby; the reason names `word`; nothing listens."""
    mta = rig.start_mta(wait=False)

    def says() -> bool:
        if not mta.is_running:
            return True
        return word in rig.command("status", check=False).stdout

    wait_until(says, 15, f"the status never says {word!r}", step=0.1)
    wait_until(lambda: word in mta.log(), 5, f"the log never says {word!r}")
    log = mta.log()
    expect("Traceback" not in log, f"a traceback: {log[-800:]}")
    expect(not rig.listens("peer", VIRTUAL, 25), "it listens without its spool")
    if mta.is_running:
        mta.stop(30)
    else:
        expect(
            mta.popen.returncode in (64, 66, 69, 72, 73, 74, 75, 78),
            f"status {mta.popen.returncode}",
        )


def scenario_busy_port(rig: Rig) -> None:
    """A port that another program holds is named with its holder; the MTA comes online when it is free."""
    Sink(rig).start()
    rig.configure(cluster="grace: 5s")
    rig.add_virtual()
    holder = rig.raw_socket("node", 2)
    holder.setsockopt(1, 2, 1)
    holder.bind((VIRTUAL, 25))
    holder.listen(5)
    rig.start_mta()
    wait_until(
        lambda: f"{VIRTUAL}" in rig.status_text() and "25" in rig.status_text(), 10, "no reason"
    )
    rig.wait_log("python", 10)
    expect(not rig.listens("peer", VIRTUAL6, 25), "it serves half of its addresses")
    holder.close()
    rig.wait_online(30)


def scenario_open_relay(rig: Rig) -> None:
    """A stranger may send only to what `accept: anyone` opens; the refusal is in the log with its code."""
    sink = Sink(rig).start()
    rig.configure(
        connectors="""
        - name: hub
          kind: smtp
          bridgeheads: ["10.9.0.3:25"]
          address-spaces: [{domain: ours.example.com, cost: 10, accept: anyone}, {domain: "*", cost: 20}]
        """
    )
    with open(rig.configuration, encoding="utf-8") as file:
        text = file.read()
    with open(rig.configuration, "w", encoding="utf-8") as file:
        file.write(text.replace('    relay-from: [10.9.0.0/24, "fd09::/64"]\n', ""))
    rig.add_virtual()
    rig.start_mta()
    rig.wait_online()
    source(rig, 3, "-t", "user@ours.example.com")
    sink.wait(3)
    expect(source(rig, 1, "-t", "user@elsewhere.example", check=False) != 0, "a stranger may relay")
    log = rig.log()
    refusals = [
        line for line in log.splitlines() if "reject" in line and "elsewhere.example" in line
    ]
    expect(
        any(code in line for line in refusals for code in ("550 5.7.1", "554 5.7.1")),
        f"{refusals}",
    )
    # This node's own programs, from the virtual address itself, may.
    with rig.connect("node", VIRTUAL, 25, source=VIRTUAL) as made:
        made.recv(500)
        made.sendall(
            b"EHLO own\r\nMAIL FROM:<a@own.example>\r\nRCPT TO:<b@elsewhere.example>\r\nQUIT\r\n"
        )
        said = b""
        while more := made.recv(4096):
            said += more
    expect(said.count(b"\r\n250 2.1") == 2, f"the node's own program was answered {said!r}")
    expect(sink.count() == 3, "something was relayed for a stranger")
    expect(not rig.listens("peer", NODE, 25), "it listens on the node's address")
