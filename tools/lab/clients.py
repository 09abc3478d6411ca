"""What the clients do: one function a kind of session, each with the real program of its trade."""

import asyncio
import os
import random
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from services import HLS_VARIANTS, PHONE_CODECS, POSTGRES_PROGRAMS, RSYNC_FILES, WEB_PAGES, write_phone_config

SHELL_COMMANDS = [
    "ls -l /usr/bin | head -40",
    "df -h",
    "uptime",
    "cat /etc/services",
    "grep -c . /etc/passwd",
    "find /etc/ssh",
    "date",
    "ls /usr/share/doc",
    "wc -l /etc/protocols",
    "head -c 3000 /etc/ssl/openssl.cnf",
    "free -m",
    "id",
]
SQL_STATEMENTS = [
    "SELECT count(*) FROM pgbench_accounts;",
    "SELECT * FROM pgbench_branches;",
    "SELECT aid, abalance FROM pgbench_accounts WHERE aid < {small};",
    "SELECT * FROM pgbench_accounts ORDER BY aid LIMIT {large};",
    "UPDATE pgbench_tellers SET tbalance = tbalance + {small} WHERE tid = 3;",
    "SELECT generate_series(1, {large});",
    "SELECT version();",
    "BEGIN; INSERT INTO pgbench_history(tid, bid, aid, delta) VALUES (1, 1, {small}, 5); COMMIT;",
    "\\dt",
    "EXPLAIN SELECT * FROM pgbench_accounts WHERE aid = {large};",
]
REDIS_COMMANDS = [
    "GET user:{small}",
    "SET user:{small} {text}",
    "LRANGE queue 0 {small}",
    "INCR visits",
    "MGET user:1 user:{small} user:40",
    "HSET profile:{small} name {text}",
    "ZADD scores {small} player{small}",
    "ZRANGE scores 0 -1 WITHSCORES",
    "KEYS user:1*",
    "PING",
    "INFO memory",
]
SNMP_SUBTREES = ["1.3.6.1.2.1.1", "1.3.6.1.2.1.2", "1.3.6.1.2.1.4", "1.3.6.1.2.1.5", "1.3.6.1.2.1.6", "1.3.6.1.2.1.7"]
SNMP_SUBTREES += ["1.3.6.1.2.1.11", "1.3.6.1.2.1.31"]
SSH_OPTIONS = [
    "-F",
    "/dev/null",
    "-o",
    "StrictHostKeyChecking=no",
    "-o",
    "UserKnownHostsFile=/dev/null",
    "-o",
    "LogLevel=ERROR",
]


@dataclass(frozen=True)
class Session:
    """One client host with the server it talks to, for as long as one piece of use lasts."""

    namespace: str
    client_address: str
    server_address: str
    directory: Path
    shared: Path
    rng: random.Random

    async def run(self, *command: str, typed: Sequence[tuple[str, float]] = ()) -> None:
        """Run a program on the client host; `typed` is its input as (text, pause_s after it)."""
        process = await asyncio.create_subprocess_exec(
            *("ip", "netns", "exec", self.namespace, *command),
            stdin=asyncio.subprocess.PIPE if typed else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            cwd=self.directory,
            start_new_session=True,
        )
        try:
            if process.stdin is not None:
                await type_into(process.stdin, typed)
            await process.wait()
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)

    async def think(self, low_s: float, high_s: float) -> None:
        await asyncio.sleep(self.rng.uniform(low_s, high_s))


async def type_into(stdin: asyncio.StreamWriter, typed: Sequence[tuple[str, float]]) -> None:
    try:
        for text, pause_s in typed:
            stdin.write(text.encode())
            await stdin.drain()
            await asyncio.sleep(pause_s)
        stdin.close()
    except (BrokenPipeError, ConnectionResetError):
        pass  # The program ended before its input did.


def fill_in(rng: random.Random, templates: list[str], count: int) -> list[str]:
    """`count` statements with their blanks filled at random."""
    return [
        template.format(small=rng.randint(1, 150), large=rng.randint(100, 900), text="v" * int(5 * 400 ** rng.random()))
        for template in rng.choices(templates, k=count)
    ]


def lines(rng: random.Random, statements: list[str], pause_s: float) -> list[tuple[str, float]]:
    return [(statement + "\n", rng.expovariate(1 / pause_s)) for statement in statements]


def keystrokes(rng: random.Random, commands: list[str]) -> list[tuple[str, float]]:
    """A person at a terminal: uneven keys, a moment to read what each command printed."""
    typed = [("", rng.uniform(0.8, 1.5))]
    for command in commands:
        typed += [(key, min(0.6, rng.lognormvariate(-2.3, 0.5))) for key in command]
        typed.append(("\n", rng.uniform(0.4, 2)))
    return typed


async def https_page(session: Session) -> None:
    rng = session.rng
    curl = ["curl", "-s", "--cacert", str(session.shared / "tls.pem"), rng.choice(["--http1.1", "--http2"])]
    curl += rng.choice([["--tls-max", "1.2"], [], []]) + rng.choice([["--compressed"], []])
    page = rng.randrange(WEB_PAGES)
    images = rng.sample(range(WEB_PAGES), rng.randint(0, 6))
    names = [f"page{page}.html", *(f"image{image}.jpg" for image in images)]
    urls = [f"https://www.lab.example/{name}" for name in names]
    manner = rng.choice(["keep-alive", "paced", "parallel", "close", "head"])
    outputs = [word for url in urls for word in ("-o", "/dev/null", url)]
    if manner == "keep-alive":
        await session.run(*curl, *outputs)
    elif manner == "paced":
        await session.run(*curl, "--rate", f"{rng.randint(30, 120)}/m", *outputs)
    elif manner == "parallel":
        await session.run(*curl, "--parallel", "--parallel-max", "4", *outputs)
    elif manner == "close":
        for url in urls[:3]:
            await session.run(*curl, "-H", "Connection: close", "-o", "/dev/null", url)
            await session.think(0.1, 1)
    else:
        await session.run(*curl, "-I", *urls[:2])


async def hls_video(session: Session) -> None:
    rng = session.rng
    url = f"https://video.lab.example/hls/{rng.choice(list(HLS_VARIANTS))}/index.m3u8"
    pace = ["-readrate", str(rng.choice([1, 1, 1.5, 2]))]
    connections = ["-http_persistent", str(rng.randint(0, 1))]
    trust = ["-ca_file", str(session.shared / "tls.pem"), "-tls_verify", "1"]
    start = ["-ss", str(rng.choice([0, 0, 6, 12]))]
    watched = ["-t", str(rng.randint(4, 12))]
    player = ["ffmpeg", "-nostdin", "-v", "error", *pace, *connections, *trust, *start, "-i", url]
    await session.run(*player, *watched, "-c", "copy", "-f", "null", "-")


async def call(session: Session) -> None:
    rng = session.rng
    codec = rng.choice(list(PHONE_CODECS))
    # A GSM frame is 20 ms long; the other codecs fill packets of any length.
    packet_ms = 20 if codec.startswith("GSM") else rng.choice([20, 30, 40, 60])
    phone = session.directory / "phone"
    account = f"answermode=manual;ptime={packet_ms}"
    write_phone_config(phone, session.shared, session.client_address, "client", account, [codec])
    callee = rng.choice(["server"] * 9 + ["nobody"])
    transport = rng.choice(["", "", "", ";transport=tcp"])
    length_s = rng.choice([1, 1, 1, 2, 2, 3, 5])
    # "x" puts the call on hold, "X" takes it up again.
    hold_and_resume = [("", 0.4 * length_s), ("x", 0.2 * length_s), ("X", length_s)]
    typed = hold_and_resume if length_s > 2 and rng.random() < 0.4 else []
    dial = f"/dial sip:{callee}@{session.server_address}{transport}"
    await session.run("baresip", "-f", str(phone), "-e", dial, "-t", str(length_s), typed=typed)


async def dns(session: Session) -> None:
    rng = session.rng
    for _ in range(rng.randint(2, 5)):
        number = rng.randint(1, 80)
        query = rng.choice(
            [
                ["dig", f"host{number}.lab.example"],
                ["dig", f"host{number}.lab.example", "AAAA"],
                ["dig", f"text{number % 22}.lab.example", "TXT"],
                ["dig", "lab.example", "MX", "+noedns"],
                ["dig", "_sip._udp.lab.example", "SRV"],
                ["dig", "alias.lab.example", "+dnssec"],
                ["dig", "-x", f"10.30.9.{number}"],
                ["dig", f"text{number % 22}.lab.example", "TXT", "+tcp"],
                ["getent", "ahosts", f"host{number}.lab.example"],
                ["getent", "ahosts", f"missing{number}"],
            ]
        )
        await session.run(*query)
        await session.think(0, 1)


async def ssh(session: Session) -> None:
    rng = session.rng
    program = ["ssh", "-i", str(session.shared / "client_key"), *SSH_OPTIONS]
    commands = rng.sample(SHELL_COMMANDS, rng.randint(1, 3))
    if rng.random() < 0.4:
        await session.run(*program, "root@server", commands[0])
    else:
        await session.run(*program, "-tt", "root@server", typed=keystrokes(rng, [*commands, "exit"]))


async def sftp(session: Session) -> None:
    rng = session.rng
    local = session.directory / "upload.bin"
    local.write_bytes(rng.randbytes(int(500 * 300 ** rng.random())))
    steps = []
    for _ in range(rng.randint(1, 3)):
        number = rng.randrange(RSYNC_FILES)
        stored = session.directory / f"stored{number}.bin"
        steps += rng.choice(
            [
                [f"get set{number}/data.bin fetched.bin"],
                [f"-get set{number}/note0.txt fetched.txt"],
                [f"put upload.bin {stored}"],
                [f"put upload.bin {stored}", f"rename {stored} {stored}.done"],
                [f"ls -l set{number}"],
                ["ls -l", "pwd"],
            ]
        )
    program = ["sftp", "-q", "-b", "-", "-i", str(session.shared / "client_key"), *SSH_OPTIONS]
    await session.run(*program, "root@server", typed=lines(rng, steps, 0.5))


async def smtp(session: Session) -> None:
    rng = session.rng
    body = session.directory / "body.txt"
    words = rng.choices(["lorem", "ipsum", "dolor", "sit", "amet,", "elit.\n"], k=int(20 * 600 ** rng.random()))
    body.write_text(" ".join(words))
    recipients = ",".join(f"user{number}@lab.example" for number in range(rng.randint(1, 4)))
    options = rng.choice([["-tls"], []]) + rng.choice([["--pipeline"], []])
    if rng.random() < 0.3:
        attachment = session.directory / "attachment.bin"
        attachment.write_bytes(rng.randbytes(int(1000 * 200 ** rng.random())))
        options += ["--attach", f"@{attachment}"]
    sender = ["--from", "sender@lab.example", "--to", recipients, "--helo", "client.lab.example"]
    await session.run("swaks", "-s", "mail.lab.example", *sender, "--body", f"@{body}", *options)


async def mqtt(session: Session) -> None:
    rng = session.rng
    topic = f"plant/{session.client_address}"
    quality = str(rng.choice([0, 0, 1, 2]))
    publish = ["mosquitto_pub", "-h", "server", "-q", quality]
    readings = [f"{rng.gauss(20, 3):.2f} {'x' * rng.randint(0, 200)}" for _ in range(rng.randint(3, 40))]
    stream = [*publish, "-t", f"{topic}/stream", "-l"]
    typed = lines(rng, readings, 0.2)
    listen = ["mosquitto_sub", "-h", "server", "-q", quality, "-k", "5", "-t", f"{topic}/#"]
    manner = rng.choice(["stream", "listen", "single"])
    if manner == "stream":
        await session.run(*stream, typed=typed)
    elif manner == "listen":
        listening = session.run(*listen, "-W", str(rng.randint(4, 12)))
        await asyncio.gather(listening, session.run(*stream, typed=typed))
    else:
        for reading in readings[:3]:
            await session.run(*publish, "-t", f"{topic}/single", "-m", reading)
            await session.think(0.2, 1)


async def ntp(session: Session) -> None:
    rng = session.rng
    if rng.random() < 0.4:
        await session.run("ntpdig", "-p", str(rng.randint(1, 5)), "-g", "500", "server")
        return
    config = session.directory / "chrony.conf"
    poll = rng.choice([-2, -1, 0])
    # A fixed client port keeps all exchanges of one client in one flow, as NTP daemons do; 0 is a port for each.
    port = rng.choice([123, 123, 0])
    options = rng.choice(["iburst", "burst", "iburst xleave", ""])
    config.write_text(
        f"server server minpoll {poll} maxpoll {poll} {options}\nacquisitionport {port}\n"
        f"bindcmdaddress /\ncmdport 0\npidfile {session.directory}/chronyd.pid\n"
    )
    await session.run("chronyd", "-d", "-x", "-u", "root", "-t", str(rng.randint(3, 12)), "-f", str(config))


async def redis(session: Session) -> None:
    rng = session.rng
    program = ["redis-cli", "-h", "server"]
    manner = rng.choice(["interactive", "interactive", "repeat", "single", "benchmark", "subscribe"])
    if manner == "interactive":
        commands = fill_in(rng, REDIS_COMMANDS, rng.randint(2, 15))
        await session.run(*program, typed=lines(rng, commands, rng.choice([0.02, 0.2, 0.5])))
    elif manner == "repeat":
        command = fill_in(rng, REDIS_COMMANDS, 1)[0].split()
        await session.run(*program, "-r", str(rng.randint(3, 30)), "-i", f"{rng.uniform(0.05, 0.3):.2f}", *command)
    elif manner == "single":
        await session.run(*program, *fill_in(rng, REDIS_COMMANDS, 1)[0].split())
    elif manner == "benchmark":
        load = ["-n", str(rng.randint(5, 60)), "-c", str(rng.randint(1, 3)), "-d", str(rng.choice([3, 100, 1000]))]
        await session.run("redis-benchmark", "-h", "server", "-t", rng.choice(["get", "set", "lpush"]), *load)
    else:
        await session.run("timeout", "-s", "INT", str(rng.randint(2, 6)), *program, "SUBSCRIBE", "news")


async def postgresql(session: Session) -> None:
    rng = session.rng
    program = ["psql", "-X", "-h", "server", "-U", "postgres"]
    manner = rng.choice(["interactive", "single", "benchmark"])
    if manner == "interactive":
        statements = fill_in(rng, SQL_STATEMENTS, rng.randint(2, 12))
        await session.run(*program, typed=lines(rng, statements, rng.choice([0.1, 0.6])))
    elif manner == "single":
        await session.run(*program, "-c", fill_in(rng, SQL_STATEMENTS, 1)[0])
    else:
        load = ["-n", "-c", "1", "-t", str(rng.randint(2, 20)), rng.choice(["-S", "-N"])]
        await session.run(f"{POSTGRES_PROGRAMS[0]}/pgbench", "-h", "server", "-U", "postgres", *load, "postgres")


async def rsync(session: Session) -> None:
    rng = session.rng
    source = session.shared / f"files/set{rng.randrange(RSYNC_FILES)}"
    options = rng.choice([["-a"], ["-az"], ["-rc"], ["-a", "--bwlimit=200"]])
    manner = rng.choice(["download", "download", "upload", "list", "update"])
    if manner == "download":
        await session.run("rsync", *options, f"rsync://server/files/{source.name}", "fetched")
    elif manner == "upload":
        await session.run("rsync", *options, str(source), f"rsync://server/uploads/{session.client_address}")
    elif manner == "list":
        await session.run("rsync", rng.choice(["-r", "-d"]), "rsync://server/files/")
    else:
        # The second transfer sends only what differs from an older copy of the file.
        copy = session.directory / "data.bin"
        data = bytearray((source / "data.bin").read_bytes())
        data[len(data) // 2] ^= 1
        copy.write_bytes(data)
        await session.run("rsync", "-I", f"rsync://server/files/{source.name}/data.bin", str(copy))


async def snmp(session: Session) -> None:
    rng = session.rng
    for _ in range(rng.randint(1, 4)):
        version = ["-v", rng.choice(["1", "2c"]), "-c", "public", "-On"]
        subtree = rng.choice(SNMP_SUBTREES)
        objects = [f"1.3.6.1.2.1.1.{number}.0" for number in rng.sample(range(1, 8), rng.randint(1, 5))]
        bulk = ["-v", "2c", "-c", "public", f"-Cr{rng.randint(3, 20)}"]
        request = rng.choice(
            [
                ["snmpget", *version, "server", *objects],
                ["snmpgetnext", *version, "server", *objects],
                ["snmpwalk", *version, "server", subtree],
                ["snmpbulkwalk", *bulk, "server", subtree],
            ]
        )
        await session.run(*request)
        await session.think(0.1, 1)


async def ping(session: Session) -> None:
    rng = session.rng
    for _ in range(rng.randint(1, 3)):
        interval_s = rng.choice([0.05, 0.1, 0.2, 0.5, 1])
        count = min(int(1 + 50 * rng.random() ** 2), int(10 / interval_s))
        size_bytes = rng.choice([16, 32, 56, 56, 64, 120, 500, 1000, 1200])
        timing = ["-c", str(count), "-i", str(interval_s), "-s", str(size_bytes), "-W", "2"]
        await session.run("ping", "-n", *timing, session.server_address)
        await session.think(0.2, 1)


SESSION_KINDS: dict[str, tuple[Callable[[Session], Awaitable[None]], int]] = {
    "https-page": (https_page, 56),
    "hls-video": (hls_video, 56),
    "call": (call, 92),
    "dns": (dns, 40),
    "ssh": (ssh, 76),
    "sftp": (sftp, 76),
    "smtp": (smtp, 76),
    "mqtt": (mqtt, 60),
    "ntp": (ntp, 56),
    "redis": (redis, 68),
    "postgresql": (postgresql, 76),
    "rsync": (rsync, 76),
    "snmp": (snmp, 44),
    "ping": (ping, 52),
}
