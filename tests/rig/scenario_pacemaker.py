"""Debian's Pacemaker starts, watches, moves and fences: nothing that was promised is lost.

The scenarios under load end with the judge's sum. The spool is an ext4 disk that one node at a time
mounts. Both nodes have one kernel: what a fenced node had written and not synced is still there, as
after kill -9; a real loss of power is the spool's own tests' matter.
"""

from __future__ import annotations

import os
import pwd
import signal
import time

from tests.rig.ground import ROOT, VENV_BIN, VIRTUAL, expect, run, wait_until
from tests.rig.judge import Judge
from tests.rig.pacemaker import Cluster
from tests.rig.traffic import Traffic

NOT_RUNNING, ARGUMENTS, GENERIC = 7, 2, 1
"""What the agent exits with (OCF)."""
USER = "nobody"
CAPABILITIES = 1 << 10 | 1 << 13
"""CAP_NET_BIND_SERVICE and CAP_NET_RAW, linux/capability.h."""
AGENT = os.path.join(ROOT, "etc", "ocf", "mta")


def scenario_tester(cluster: Cluster) -> None:
    """ocf-tester finds no fault in the agent with the real MTA; an unfenced disk is refused."""
    node = cluster["a"]
    cluster.configure(sharing="none")
    cluster.add_virtual(node="a")
    run([f"{VENV_BIN}/mta", "spool", "init", cluster.spool])
    parameters = {
        **cluster.parameters, "config": node.configuration, "socket": node.control,
    }  # fmt: skip
    given = [word for key, value in parameters.items() for word in ("-o", f"{key}={value}")]
    said = cluster.inside(
        "a", ["ocf-tester", "-n", "mta", *given, AGENT], timeout=120, env=node.environment(),
        check=False,
    )  # fmt: skip
    text = said.stdout + said.stderr
    expect("passed all tests" in text and said.returncode == 0, f"ocf-tester: {text[-1200:]}")
    cluster.configure(sharing="failover-mount")
    code, why = agent(cluster, parameters, "start")
    expect(code == ARGUMENTS, f"a disk that nobody fences: start exits {code}: {why[-400:]}")
    expect("failover-mount" in why, f"the refusal does not say why: {why[-400:]}")
    cluster.note(why.strip().splitlines()[-1][-400:])
    code, _ = agent(cluster, parameters, "monitor")
    expect(code == NOT_RUNNING, "what was refused is monitored as running")
    expect(agent(cluster, parameters, "stop")[0] == 0, "what was refused does not stop")


def scenario_user(cluster: Cluster) -> None:
    """With `user` the MTA runs as that one, with the two capabilities that it needs and no other."""
    node = cluster["a"]
    node.control = os.path.join(node.home, "run", "control.sock")
    cluster.configure(sharing="none")
    cluster.add_virtual(node="a")
    run([f"{VENV_BIN}/mta", "spool", "init", cluster.spool])
    run(["chown", "-R", USER, os.path.dirname(cluster.spool), node.home])
    parameters = {
        **cluster.parameters, "config": node.configuration, "socket": node.control, "user": USER,
        "pidfile": os.path.join(node.home, "mta.pid"),
    }  # fmt: skip
    code, why = agent(cluster, parameters, "start")
    expect(code == 0, f"start as {USER} exits {code}: {why[-800:]}")
    with open(parameters["pidfile"]) as file:
        pid = file.read().split()[0]
    with open(f"/proc/{pid}/status") as file:
        status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    uids = set(status["Uid"].split())
    expect(uids == {str(pwd.getpwnam(USER).pw_uid)}, f"the MTA runs under the uids {uids}")
    for kind in ("CapEff", "CapPrm", "CapBnd", "CapAmb"):
        had = int(status[kind], 16)
        expect(had == CAPABILITIES, f"{kind} is {had:#x}, not {CAPABILITIES:#x}")
    for level in (0, 10, 20):
        code, why = agent(cluster, parameters, "monitor", level)
        expect(code == 0, f"monitor at level {level} exits {code}: {why[-400:]}")
    expect(node.greeting(VIRTUAL).startswith(b"220"), "the virtual address does not greet")
    code, why = agent(cluster, parameters, "stop")
    expect(code == 0, f"stop exits {code}: {why[-400:]}")
    code, _ = agent(cluster, parameters, "monitor")
    expect(code == NOT_RUNNING, f"after stop monitor exits {code}")
    expect(not cluster.listens("a", VIRTUAL, 25), "somebody listens after stop")


def agent(
    cluster: Cluster, parameters: dict[str, str], action: str, level: int = 0
) -> tuple[int, str]:
    """The agent on node a without Pacemaker: what it exits with, and what it says."""
    environment = {
        **cluster["a"].environment(), "OCF_ROOT": "/usr/lib/ocf", "OCF_RESOURCE_INSTANCE": "mta",
        "OCF_CHECK_LEVEL": str(level),
        **{f"OCF_RESKEY_{key}": value for key, value in parameters.items()},
    }  # fmt: skip
    done = cluster.inside("a", [AGENT, action], timeout=60, env=environment, check=False)
    return done.returncode, done.stderr


def scenario_planned(cluster: Cluster) -> None:
    """A move and a standby hand over without a double; a node without the disk answers 7."""
    traffic, judge = under_load(cluster)
    for level in (0, 10, 20):
        code = cluster["b"].agent("monitor", level).returncode
        expect(code == NOT_RUNNING, f"depth {level} exits {code} where the disk is not mounted")
        code = cluster["a"].agent("monitor", level).returncode
        expect(code == 0, f"depth {level} exits {code} on the owner")
    for _ in range(2):
        expect(cluster["b"].agent("stop").returncode == 0, "stopping what does not run fails")
    begun = time.monotonic()
    cluster.cluster("crm_resource", "--resource", "mail", "--move", "--node", "b")
    taken_over(cluster, traffic, "b", begun, "moved")
    cluster.cluster("crm_resource", "--resource", "mail", "--clear")
    begun = time.monotonic()
    cluster.cluster("crm_attribute", "--node", "b", "--name", "standby", "--update", "on")
    taken_over(cluster, traffic, "a", begun, "standby")
    cluster.cluster("crm_attribute", "--node", "b", "--name", "standby", "--delete")
    ended(cluster, traffic, judge, planned=True)
    expect(not cluster.fencings, f"{cluster.fencings} were fenced")


def scenario_process(cluster: Cluster) -> None:
    """kill -9 and SIGSTOP are mended in place; an MTA whose disk hangs gets its node fenced."""
    traffic, judge = under_load(cluster)
    for what, number in (("kill -9", signal.SIGKILL), ("SIGSTOP", signal.SIGSTOP)):
        epoch, begun = cluster.epoch, time.monotonic()
        os.kill(cluster["a"].mta_pid(), number)
        # A stop in the midst of a probe at depth 20 is noticed when that gives up, after 20 s.
        wait_until(lambda was=epoch: cluster.epoch > was, 40, f"{what}: no new epoch")  # type: ignore[misc]
        taken_over(cluster, traffic, "a", begun, what)
        traffic.wait_promised(100)  # the monitors that follow a start are over then
    expect(not cluster.fencings, f"{cluster.fencings} were fenced")
    begun = time.monotonic()
    cluster.freeze_spool("a")
    taken_over(cluster, traffic, "b", begun, "disk hangs")
    expect([name for _, name in cluster.fencings] == ["a"], f"fenced: {cluster.fencings}")
    ended(cluster, traffic, judge)


def scenario_node(cluster: Cluster) -> None:
    """A node that cannot be heard is fenced before the other serves, whoever is cut off."""
    traffic, judge = under_load(cluster)
    begun = time.monotonic()
    cluster["a"].kill_corosync()
    greeted = after_fencing(cluster, traffic, "b", begun, "corosync killed")
    released = judge.peers_are_released(greeted)
    cluster.note(
        f"peers of the fenced node are released {released:.2f} s after the new owner's 220"
    )
    cluster["a"].boot()
    cluster.note(f"node a booted and joined after {cluster.wait_joined('a'):.1f} s")
    expect(cluster.greets_from("b"), "the return of node a took the ownership away")
    epoch, begun = cluster.epoch, time.monotonic()
    cluster.part("a")
    wait_until(lambda: len(cluster.fencings) == 2, 20, "nobody was fenced")
    expect(cluster.fencings[-1][1] == "a", "a healthy owner was fenced")
    traffic.wait_promised(50)
    expect(cluster.epoch == epoch, f"a partition made epoch {cluster.epoch} of {epoch}")
    cluster.note(
        f"partition: the owner went on, the other was fenced after {since(cluster, begun)}"
    )
    cluster.join("a")
    cluster["a"].boot()
    cluster.wait_joined("a")
    begun = time.monotonic()
    cluster.part("b")
    after_fencing(cluster, traffic, "a", begun, "owner cut off")
    ended(cluster, traffic, judge)


def scenario_refused(cluster: Cluster) -> None:
    """An MTA that cannot start says why in crm_mon, and the other node serves."""
    traffic, judge = under_load(cluster)
    node = cluster["b"]
    node.do("cp", "/run/mta.yaml", "/run/right.yaml")
    node.do("sh", "-c", "echo 'routing: {no-such-key: 1}' >>/run/mta.yaml")
    begun = time.monotonic()
    cluster.cluster("crm_resource", "--resource", "mail", "--move", "--node", "b")
    why = failed_start(cluster, "b", ARGUMENTS, "no-such-key")
    cluster.note(f"crm_mon: {why}")
    taken_over(cluster, traffic, "a", begun, "moved to a bad configuration, and back")
    cluster.cluster("crm_resource", "--resource", "mail", "--clear")
    node.do("cp", "/run/right.yaml", "/run/mta.yaml")
    cluster.cluster("crm_resource", "--cleanup", "--resource", "mta")
    cluster.cluster(
        "crm_attribute", "--type", "crm_config", "--name", "stonith-enabled", "--update", "false"
    )
    cluster.cluster("crm_resource", "--resource", "mail", "--move", "--node", "b")
    why = failed_start(cluster, "b", ARGUMENTS, "stonith-enabled is false")
    cluster.note(f"crm_mon: {why}")
    failed_start(cluster, "a", ARGUMENTS, "stonith-enabled is false")
    cluster.cluster(
        "crm_attribute", "--type", "crm_config", "--name", "stonith-enabled", "--update", "true"
    )
    begun = time.monotonic()
    cluster.cluster("crm_resource", "--cleanup", "--resource", "mta")
    taken_over(cluster, traffic, "b", begun, "fencing again")
    ended(cluster, traffic, judge)
    expect(not cluster.fencings, f"{cluster.fencings} were fenced")


# --- the parts


def under_load(cluster: Cluster) -> tuple[Traffic, Judge]:
    """Both nodes are members, node a owns, and a load has run for 100 messages."""
    traffic = Traffic(cluster, rate=100).catch()
    booted = cluster.online()
    cluster.wait_joined("b")
    cluster.note(f"both nodes booted: 220 from node a after {booted:.1f} s")
    traffic.start().wait_promised(100)
    return traffic, Judge(cluster, traffic)


def taken_over(cluster: Cluster, traffic: Traffic, by: str, begun: float, after: str) -> None:
    cluster.wait_owner(by)
    cluster.note(f"{after}: 220 from node {by} after {time.monotonic() - begun:.1f} s")
    traffic.wait_promised(50)


def after_fencing(cluster: Cluster, traffic: Traffic, by: str, begun: float, after: str) -> float:
    """`by` serves, and not before the other node was fenced."""
    before = len(cluster.fencings)
    cluster.wait_owner(by)
    greeted = time.monotonic()
    expect(
        [name for _, name in cluster.fencings[before:]] == [cluster.other(by)],
        f"fenced were {cluster.fencings}, when node {by} served",
    )
    cluster.note(
        f"{after}: fenced after {since(cluster, begun)}, 220 from node {by} after {greeted - begun:.1f} s"
    )
    traffic.wait_promised(50)
    return greeted


def since(cluster: Cluster, begun: float) -> str:
    return f"{cluster.fencings[-1][0] - begun:.1f} s"


def failed_start(cluster: Cluster, name: str, code: int, words: str) -> str:
    """The reason of a failed start on a node, as crm_mon shows it, once it shows one with `words`."""
    seen = [""]

    def shown() -> bool:
        for operation in cluster.history("mta", name):
            if operation.get("operation") == "start" and operation.get("rc-code") == str(code):
                seen.append(operation.get("exit-reason", ""))
        return words in seen[-1]

    wait_until(shown, 30, f"node {name}: no start failed with {code} and {words!r}", 0.2)
    text = cluster.cluster("crm_mon", "--one-shot", "--inactive")
    expect(words in text, f"crm_mon does not say {words!r}: {text[-800:]}")
    return seen[-1][:300]


def ended(cluster: Cluster, traffic: Traffic, judge: Judge, planned: bool = False) -> None:
    verdict = judge.check()
    sums = traffic.finish()
    doubled = verdict.outbound_doubles + verdict.inbound_doubles
    expect(not (planned and doubled), f"a planned move doubled {doubled} messages")
    cluster.note(
        f"{len(sums.promised)} promised, lost 0, wrong source 0, {verdict.outbound_doubles} sent "
        f"twice, {verdict.inbound_doubles} taken twice of {verdict.unread} unread, epoch "
        f"{cluster.epoch}"
    )
