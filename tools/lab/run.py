"""Run the lab: build the network, start the servers, let the clients use them, and write the sample."""

import argparse
import asyncio
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from clients import SESSION_KINDS, Session
from network import (
    CLIENT_GATEWAY,
    CLIENT_STACKS,
    ROUTER,
    SERVER_GATEWAY,
    SERVER_STACKS,
    add_host,
    add_router,
    configure_host,
    random_path,
    remove_network,
    set_path,
    set_resolver,
    start_forwarder,
)
from sample import SessionRecord, write_sample
from services import fill_databases, make_content, start_services

REPOSITORY = Path(__file__).resolve().parents[2]
SESSION_TIMEOUT_S = 45


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--clients", type=int, default=20, help="client hosts that work at the same time")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "netdiffusion_core/samples/lab")
    parser.add_argument("--keep", type=Path, help="also keep the whole capture and the list of sessions here")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    started_s = time.monotonic()
    remove_network()
    directory = Path(tempfile.mkdtemp(prefix="netdiffusion-lab-"))
    directory.chmod(0o755)
    try:
        capture = directory / "lab.pcap"
        sessions = run_lab(directory, capture, arguments.seed, arguments.clients)
        minutes = (time.monotonic() - started_s) / 60
        if arguments.keep:
            arguments.keep.mkdir(parents=True, exist_ok=True)
            shutil.copy(capture, arguments.keep)
            lines = [json.dumps(asdict(session)) + "\n" for session in sessions]
            (arguments.keep / "sessions.jsonl").write_text("".join(lines))
        write_sample(capture, sessions, arguments.output, arguments.seed, minutes)
    finally:
        remove_network()
        shutil.rmtree(directory, ignore_errors=True)


def run_lab(directory: Path, capture: Path, seed: int, client_count: int) -> list[SessionRecord]:
    shared = directory / "shared"
    shared.mkdir()
    make_content(shared, random.Random(seed))
    add_router()
    servers = []
    for number, stack in enumerate(SERVER_STACKS, start=1):
        namespace, address = f"lab-server{number}", f"10.30.0.{10 + number}"
        add_host(namespace, "servers")
        configure_host(namespace, address, SERVER_GATEWAY, stack)
        start_services(namespace, address, directory / namespace, shared)
        fill_databases(namespace, address)
        servers.append(address)
    namespaces = [f"lab-client{number:02}" for number in range(1, client_count + 1)]
    for namespace in namespaces:
        add_host(namespace, "clients")
    forwarder = start_forwarder(seed)
    tcpdump = start_capture(capture)
    try:
        return asyncio.run(run_sessions(namespaces, servers, forwarder, directory, shared, seed))
    finally:
        tcpdump.terminate()
        tcpdump.wait()
        forwarder.kill()


def start_capture(capture: Path) -> subprocess.Popen[bytes]:
    """Capture at the clients' gateway, before the path delays or drops anything they send."""
    options = ["-n", "-q", "-s", "0", "-B", "16384", "-Z", "root", "-w", str(capture)]
    command = ["ip", "netns", "exec", ROUTER, "tcpdump", "-i", "clients", *options, "ip"]
    tcpdump = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    while not capture.exists():
        time.sleep(0.1)
    return tcpdump


async def run_sessions(
    namespaces: list[str],
    servers: list[str],
    forwarder: subprocess.Popen[str],
    directory: Path,
    shared: Path,
    seed: int,
) -> list[SessionRecord]:
    kinds = [kind for kind, (_, count) in SESSION_KINDS.items() for _ in range(count)]
    random.Random(seed).shuffle(kinds)
    waiting = iter(enumerate(kinds))
    records: list[SessionRecord] = []

    async def occupy(namespace: str) -> None:
        for number, kind in waiting:
            rng = random.Random(f"{seed} {number}")
            # Each session gets an address that no other has, so that the address tells whose flow it is.
            client_address = f"10.20.{1 + number // 250}.{2 + number % 250}"
            scratch = directory / f"session{number}"
            scratch.mkdir()
            session = Session(namespace, client_address, rng.choice(servers), scratch, shared, rng)
            records.append(await run_session(session, kind, forwarder))
            shutil.rmtree(scratch)
            if len(records) % 50 == 0:
                print(f"{len(records)} of {len(kinds)} sessions", flush=True)

    await asyncio.gather(*(occupy(namespace) for namespace in namespaces))
    return records


async def run_session(session: Session, kind: str, forwarder: subprocess.Popen[str]) -> SessionRecord:
    path = random_path(session.rng)
    stack = session.rng.choice(CLIENT_STACKS)
    configure_host(session.namespace, session.client_address, CLIENT_GATEWAY, stack)
    set_resolver(session.namespace, session.server_address)
    set_path(forwarder, session.client_address, path)
    start_s = time.time()
    behave, _ = SESSION_KINDS[kind]
    try:
        await asyncio.wait_for(behave(session), SESSION_TIMEOUT_S)
    except TimeoutError:
        print(f"{kind} from {session.client_address} ended by its time limit", flush=True)
    # The last segments are still under way when the client program ends.
    await asyncio.sleep(0.5 + 6 * path.delay_ms / 1e3)
    return SessionRecord(kind, session.client_address, session.server_address, start_s, stack.name)


if __name__ == "__main__":
    main()
