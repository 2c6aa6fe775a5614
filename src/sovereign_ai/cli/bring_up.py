"""`sovereign up`, stage by stage: an empty machine becomes an endpoint."""

from __future__ import annotations

import secrets
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from sovereign_ai import catalog
from sovereign_ai.cli import address, conversation, plan_tables, tables
from sovereign_ai.cli.planning import plan_of
from sovereign_ai.cli.wanted import check_fallbacks, known_model, stored_formats
from sovereign_ai.config import Factory, ModelEntry, Paths, environment
from sovereign_ai.console import Console
from sovereign_ai.deploy import local
from sovereign_ai.deploy.state import RunLock, RunSpec, read_state, write_json
from sovereign_ai.engines import environment as engine_environment
from sovereign_ai.engines.environment import EngineEnvironment
from sovereign_ai.errors import AlreadyRunning, EngineFailed
from sovereign_ai.gateway.extras import check_extras
from sovereign_ai.gateway.ledger import Ledger
from sovereign_ai.inventory import catalog_bandwidths, form_tiers, take_inventory
from sovereign_ai.planner import wish_for
from sovereign_ai.render import TritonProcess, render_routes, triton_processes
from sovereign_ai.spec import Inventory, Model, Plan, Tier
from sovereign_ai.store import Store, check_reachable, ensure
from sovereign_ai.store.manifest import Manifest

FIRST_QUESTION = "What is the capital of France?"
WATCH_INTERVAL_S = 0.3


class Stopwatch:
    """Where the seconds went."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, float]] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.stages.append((name, time.monotonic() - started))


def run(factory: Factory, paths: Paths, console: Console, *, cpu_only: bool, detach: bool) -> None:
    """Bring the stack up and, unless detached, stay until Ctrl-C."""
    lock = RunLock(paths.run)
    if not lock.acquire():
        _say_running(paths, lock, console)
        return
    try:
        _Up(factory, paths, console, cpu_only=cpu_only, detach=detach).run(lock)
    finally:
        lock.release()


def _say_running(paths: Paths, lock: RunLock, console: Console) -> None:
    """Name who holds the home folder. A running stack is what was asked for, one in the making is not."""
    state = local.running(paths)
    if state is None:
        holder = lock.holder()
        who = f" (pid {holder.process.pid})" if holder else ""
        raise AlreadyRunning(
            f"another `sovereign up`{who} is preparing {paths.home}",
            "wait for it, or stop it: sovereign down",
        )
    console.say(f"already running (supervisor pid {state.supervisor.pid}): {state.gateway_url}/v1")
    console.say("nothing was changed; `sovereign down` stops it")


class _Up:
    """One `up`: what its stages share."""

    def __init__(
        self, factory: Factory, paths: Paths, console: Console, *, cpu_only: bool, detach: bool
    ) -> None:
        self._factory, self._paths, self._console = factory, paths, console
        self._cpu_only, self._detach = cpu_only, detach
        self._watch = Stopwatch()
        self._store = Store(paths.models, paths.cache)
        self._entries = factory.models or catalog.default_entries()

    def run(self, lock: RunLock) -> None:
        with self._watch.stage("checks and clean-up"):
            self._check()
        inventory, tiers = self._look()
        plan = self._plan(inventory, tiers, self._facts())
        plan_tables.show_plan(self._console, plan, inventory)
        with self._watch.stage("engine environment"):
            kind = engine_environment.kind_for(inventory)
            for entry in self._entries:
                check_reachable(self._store, entry)
            engine = engine_environment.ensure(self._paths, kind, self._console)
        with self._watch.stage("models: fetch, convert, verify"):
            manifests = self._models()
        plan = self._plan(inventory, tiers, [manifest.model for manifest in manifests])
        self._serve(plan, engine, manifests, lock)

    def _check(self) -> None:
        check_extras(self._factory.gateway)
        left = local.clean_up(self._paths)
        if left:
            self._console.note(f"ended {left} processes that a crashed run had left")
        local.check_port(self._factory.gateway.host, self._factory.gateway.port)

    def _look(self) -> tuple[Inventory, tuple[Tier, ...]]:
        with self._watch.stage("inventory and tiers"):
            inventory = take_inventory(cpu_only=self._cpu_only)
            tiers = form_tiers(inventory, self._factory.tiers, catalog_bandwidths(inventory))
        tables.show_inventory(self._console, inventory)
        tables.show_tiers(self._console, tiers)
        return inventory, tiers

    def _facts(self) -> list[Model]:
        """What is known of each model before the engine is there; one of which nothing is known is brought in
        first."""
        return [self._fact(entry) for entry in self._entries]

    def _fact(self, entry: ModelEntry) -> Model:
        if found := known_model(entry, self._store):
            return found
        with self._watch.stage(f"model {entry.name}"):
            return ensure(self._store, entry, self._console).model

    def _plan(self, inventory: Inventory, tiers: Sequence[Tier], models: Sequence[Model]) -> Plan:
        check_fallbacks(self._entries, models)
        wishes = [
            wish_for(model, entry, stored=stored_formats(entry, self._store))
            for model, entry in zip(models, self._entries, strict=True)
        ]
        with self._watch.stage("plan"):
            return plan_of(self._factory, self._paths, inventory, tiers, wishes)

    def _models(self) -> list[Manifest]:
        manifests = [ensure(self._store, entry, self._console) for entry in self._entries]
        for manifest in manifests:
            total = sum(file.bytes for file in manifest.files)
            with self._console.progress(f"verifying {manifest.name}", total=total) as progress:
                self._store.verify(manifest, progress)
        return manifests

    def _serve(
        self, plan: Plan, engine: EngineEnvironment, manifests: Sequence[Manifest], lock: RunLock
    ) -> None:
        with self._watch.stage("render"):
            spec = self._render(plan, engine, manifests)
        supervisor = local.start_supervisor(
            self._paths, spec, lock, environment(), foreground=not self._detach
        )
        try:
            with self._watch.stage("engine load until ready"):
                local.wait_until_ready(self._paths, supervisor, self._console)
            self._greet(spec.gateway_url)
            if not self._detach:
                self._stay(supervisor)
        except BaseException:
            # Whatever ends this command, Ctrl-C included, must not leave half a stack behind.
            local.stop(self._paths, self._console)
            raise

    def _render(self, plan: Plan, engine: EngineEnvironment, manifests: Sequence[Manifest]) -> RunSpec:
        folders = {manifest.name: str(self._store.folder(manifest)) for manifest in manifests}
        processes = triton_processes(plan, folders)
        ports = local.free_ports(2 * len(processes))
        pairs = {process.name: (ports[2 * i], ports[2 * i + 1]) for i, process in enumerate(processes)}
        run_id = secrets.token_hex(4)
        self._write_plan(plan, processes, folders, pairs)
        local.rotate_logs(self._paths.logs, ["supervisor", "gateway", *pairs])
        variables = environment()
        services = [local.gateway_service(self._paths, self._factory.gateway, variables)]
        services += [
            local.triton_service(
                process, engine, self._paths, ports=pairs[process.name], run_id=run_id, variables=variables
            )
            for process in processes
        ]
        return RunSpec(
            run_id=run_id,
            home=str(self._paths.home),
            services=tuple(services),
            gateway_url=local.gateway_url(self._factory.gateway),
        )

    def _write_plan(
        self,
        plan: Plan,
        processes: Sequence[TritonProcess],
        folders: Mapping[str, str],
        ports: Mapping[str, tuple[int, int]],
    ) -> None:
        urls = {name: f"http://127.0.0.1:{pair[0]}" for name, pair in ports.items()}
        routes = render_routes(
            plan,
            processes,
            folders,
            urls,
            created=int(time.time()),
            upstreams=self._factory.gateway.upstreams,
            fallbacks={entry.name: entry.fallback for entry in self._entries},
        )
        write_json(self._paths.run / "plan.json", plan)
        write_json(self._paths.run / "routes.json", routes)

    def _greet(self, url: str) -> None:
        ledger = Ledger(self._paths.ledger)
        secret = None if ledger.list_keys() else ledger.create_key("first")[1]
        model = conversation.first_chat_model(self._paths.run)
        with self._watch.stage("first answer"), conversation.passing_key(self._paths.ledger, "up") as key:
            question = [{"role": "user", "content": FIRST_QUESTION}]
            answer = conversation.ask(url, key, model, question, {"temperature": 0, "max_tokens": 64})
        say = self._console.say
        say()
        say(f"{model} was asked: {FIRST_QUESTION}")
        say(f"{model} answered: {answer.text.strip()}")
        rate = f"{answer.tokens_per_second:.1f} tokens/s"
        say(f"{answer.tokens} tokens, {rate}, first after {answer.first_token_s:.2f} s")
        say()
        tables.show_seconds(self._console, self._watch.stages)
        address.show(self._console, url, model, secret)

    def _stay(self, supervisor: subprocess.Popen[bytes]) -> None:
        """Until Ctrl-C; changes of the services are told as they happen."""
        self._console.note("Ctrl-C stops everything")
        known: dict[str, str] = {}
        while supervisor.poll() is None:
            if state := read_state(self._paths.run):
                for service in state.services:
                    if known.setdefault(service.name, service.state) != service.state:
                        self._console.note(f"{service.name}: {service.state} {service.error}".rstrip())
                        known[service.name] = service.state
            time.sleep(WATCH_INTERVAL_S)
        if supervisor.returncode != 0:
            raise EngineFailed("the supervisor ended", f"see {self._paths.logs / 'supervisor.log'}")
        self._console.note("stopped")
