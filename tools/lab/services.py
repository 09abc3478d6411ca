"""The lab's servers: every server host runs every service, so that no class is told apart by its server."""

import os
import random
import shutil
import subprocess
import time
from pathlib import Path

from network import CLIENT_GATEWAY

POSTGRES_PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1:]
LISTENING_PORTS = {
    "tcp": [22, 25, 53, 443, 873, 1883, 5432, 6379],
    "udp": [53, 123, 161, 5060],
}
HLS_VARIANTS = {"small": (60, 2), "low": (200, 2), "mid": (600, 2), "high": (1500, 4)}
HLS_LENGTH_S = 40
SPEECH_RATE_HZ = 8000
PHONE_CODECS = {
    "PCMU/8000/1": "g711",
    "PCMA/8000/1": "g711",
    "GSM/8000/1": "gsm",
    "L16/8000/1": "l16",
    "G722/16000/1": "g722",
    "opus/48000/2": "opus",
}
RSYNC_FILES = 30
WEB_PAGES = 40


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def run(*command: str, **options: object) -> None:
    subprocess.run(command, check=True, capture_output=True, **options)  # type: ignore[call-overload]


def make_content(shared: Path, rng: random.Random) -> None:
    """Web pages, video and files that all servers offer, and the keys they and the clients use."""
    for number in range(WEB_PAGES):
        size_bytes = int(600 * 400 ** rng.random())
        write(shared / f"www/page{number}.html", "".join(rng.choices("<p>lorem ipsum dolor\n", k=size_bytes // 20)))
        (shared / f"www/image{number}.jpg").write_bytes(rng.randbytes(int(800 * 100 ** rng.random())))
    for number in range(RSYNC_FILES):
        path = shared / f"files/set{number}/data.bin"
        path.parent.mkdir(parents=True)
        path.write_bytes(rng.randbytes(int(2000 * 300 ** rng.random())))
        for part in range(rng.randint(0, 5)):
            (path.parent / f"note{part}.txt").write_bytes(rng.randbytes(rng.randint(50, 8000)))
    for variant, (rate_kbps, segment_s) in HLS_VARIANTS.items():
        make_video(shared / "www/hls" / variant, rate_kbps, segment_s)
    make_speech(shared / "speech.wav")
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(shared / "client_key"))
    run("ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-f", str(shared / "host_key"))
    shutil.copy(shared / "client_key.pub", shared / "authorized_keys")
    make_certificate(shared)


def make_video(directory: Path, rate_kbps: int, segment_s: int) -> None:
    directory.mkdir(parents=True)
    source = ["-f", "lavfi", "-i", "testsrc2=size=320x240:rate=15", "-f", "lavfi", "-i", "sine=frequency=440"]
    # Noise keeps the encoder from undershooting its rate on the synthetic picture.
    video = ["-vf", "noise=alls=40:allf=t", "-c:v", "libx264", "-preset", "ultrafast", "-threads", "1"]
    rate = ["-b:v", f"{rate_kbps}k", "-maxrate", f"{rate_kbps}k", "-bufsize", f"{2 * rate_kbps}k"]
    frames = ["-g", str(15 * segment_s), "-c:a", "aac", "-b:a", "48k", "-t", str(HLS_LENGTH_S)]
    output = ["-f", "hls", "-hls_time", str(segment_s), "-hls_list_size", "0", str(directory / "index.m3u8")]
    run("ffmpeg", "-nostdin", "-v", "error", *source, *video, *rate, *frames, *output)


def make_speech(path: Path) -> None:
    """Noise that swells and fades, so that codecs with a variable rate have something to vary with."""
    noise = f"anoisesrc=color=pink:seed=1:sample_rate={SPEECH_RATE_HZ},tremolo=f=0.4:d=0.9"
    output = ["-t", "60", "-ac", "1", "-c:a", "pcm_s16le", str(path)]
    run("ffmpeg", "-nostdin", "-v", "error", "-f", "lavfi", "-i", noise, *output)


def make_certificate(shared: Path) -> None:
    names = "subjectAltName=DNS:www.lab.example,DNS:video.lab.example,DNS:mail.lab.example"
    subject = ["-subj", "/CN=www.lab.example", "-addext", names]
    files = ["-keyout", str(shared / "tls.key"), "-out", str(shared / "tls.pem")]
    run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", *subject, *files)
    (shared / "tls.key").chmod(0o644)


def web_command(directory: Path, shared: Path, address: str) -> list[str]:
    temporary = "\n".join(
        f"  {kind}_temp_path {directory}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = f"""
daemon off;
user root;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/nginx.log;
events {{ worker_connections 512; }}
http {{
  include /etc/nginx/mime.types;
  access_log off;
{temporary}
  gzip on;
  keepalive_timeout 20s;
  server {{
    listen 443 ssl http2;
    ssl_certificate {shared}/tls.pem;
    ssl_certificate_key {shared}/tls.key;
    root {shared}/www;
  }}
}}
"""
    return ["nginx", "-e", f"{directory}/nginx.log", "-c", str(write(directory / "nginx.conf", config))]


def dns_command(directory: Path, shared: Path, address: str) -> list[str]:
    hosts = "\n".join(f"host-record=host{number}.lab.example,10.30.9.{number}" for number in range(1, 60))
    texts = "\n".join(f"txt-record=text{number}.lab.example,{'v=lab' * (number + 1)}" for number in range(20))
    config = f"""
no-resolv
no-hosts
no-daemon
bind-interfaces
listen-address={address}
user=root
pid-file={directory}/dnsmasq.pid
local=/lab.example/
local-ttl=60
{"".join(f"host-record={name}.lab.example,{address}{chr(10)}" for name in ("www", "video", "mail", "server"))}
{hosts}
{texts}
cname=alias.lab.example,host7.lab.example
mx-host=lab.example,mail.lab.example,10
srv-host=_sip._udp.lab.example,server.lab.example,5060
ptr-record=1.9.30.10.in-addr.arpa,host1.lab.example
"""
    return ["dnsmasq", "-C", str(write(directory / "dnsmasq.conf", config))]


def ssh_command(directory: Path, shared: Path, address: str) -> list[str]:
    config = f"""
Port 22
ListenAddress {address}
HostKey {shared}/host_key
AuthorizedKeysFile {shared}/authorized_keys
PermitRootLogin prohibit-password
PasswordAuthentication no
StrictModes no
UsePAM yes
SetEnv HISTFILE=/dev/null
UseDNS no
PrintMotd no
PrintLastLog no
MaxStartups 100
PidFile {directory}/sshd.pid
Subsystem sftp internal-sftp -d {shared}/files
"""
    return ["/usr/sbin/sshd", "-D", "-f", str(write(directory / "sshd.conf", config))]


def mail_command(directory: Path, shared: Path, address: str) -> list[str]:
    config = f"""
primary_hostname = mail.lab.example
spool_directory = {directory}/exim
log_file_path = {directory}/exim/%slog
pid_file_path = {directory}/exim/exim.pid
local_interfaces = {address}
daemon_smtp_ports = 25
tls_advertise_hosts = *
tls_certificate = {shared}/tls.pem
tls_privatekey = {shared}/tls.key
acl_smtp_rcpt = accept
host_lookup =
rfc1413_query_timeout = 0s
queue_only
"""
    spool = directory / "exim"
    spool.mkdir()
    shutil.chown(spool, "Debian-exim", "Debian-exim")
    return ["exim4", "-C", str(write(directory / "exim.conf", config)), "-bdf"]


def mqtt_command(directory: Path, shared: Path, address: str) -> list[str]:
    config = f"listener 1883 {address}\nallow_anonymous true\nuser root\npersistence false\n"
    return ["mosquitto", "-c", str(write(directory / "mosquitto.conf", config))]


def ntp_command(directory: Path, shared: Path, address: str) -> list[str]:
    config = f"""
local stratum 8
allow all
bindaddress {address}
bindcmdaddress /
cmdport 0
pidfile {directory}/chronyd.pid
"""
    # -x: serve the time, never set it.
    return ["chronyd", "-d", "-x", "-u", "root", "-f", str(write(directory / "chrony.conf", config))]


def redis_command(directory: Path, shared: Path, address: str) -> list[str]:
    where = ["--bind", address, "--port", "6379", "--dir", str(directory)]
    return ["redis-server", *where, "--protected-mode", "no", "--save", ""]


def postgres_command(directory: Path, shared: Path, address: str) -> list[str]:
    cluster = directory / "postgres"
    cluster.mkdir()
    shutil.chown(cluster, "postgres", "postgres")
    programs = POSTGRES_PROGRAMS[0]
    as_postgres = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    initdb = [f"{programs}/initdb", "-D", str(cluster), "-U", "postgres", "-A", "trust", "--no-sync"]
    run(*as_postgres, *initdb, cwd=cluster)
    with (cluster / "pg_hba.conf").open("a") as rules:
        rules.write(f"host all all {CLIENT_GATEWAY}/16 trust\nhost all all {address}/32 trust\n")
    options = {"listen_addresses": address, "unix_socket_directories": str(cluster), "fsync": "off"}
    settings = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
    return [*as_postgres, f"{programs}/postgres", "-D", str(cluster), *settings]


def rsync_command(directory: Path, shared: Path, address: str) -> list[str]:
    uploads = directory / "uploads"
    uploads.mkdir()
    config = f"""
pid file = {directory}/rsyncd.pid
log file = {directory}/rsyncd.log
use chroot = no
uid = root
gid = root
[files]
path = {shared}/files
[uploads]
path = {uploads}
read only = no
"""
    path = str(write(directory / "rsyncd.conf", config))
    return ["rsync", "--daemon", "--no-detach", "--config", path, "--address", address]


def snmp_command(directory: Path, shared: Path, address: str) -> list[str]:
    config = f"rocommunity public\nagentaddress udp:{address}:161\nsysname server.lab.example\n"
    path = str(write(directory / "snmpd.conf", config))
    return ["snmpd", "-f", "-Lf", f"{directory}/snmpd.log", "-C", "-c", path, "-p", f"{directory}/snmpd.pid"]


def phone_command(directory: Path, shared: Path, address: str) -> list[str]:
    codecs = list(PHONE_CODECS)
    write_phone_config(directory / "phone", shared, address, "server", "answermode=auto", codecs)
    return ["baresip", "-f", str(directory / "phone")]


def write_phone_config(directory: Path, shared: Path, address: str, user: str, account: str, codecs: list[str]) -> None:
    """A softphone that reads its microphone from a sound file and throws away what it hears."""
    loaded = sorted({PHONE_CODECS[codec] for codec in codecs})
    config = f"""
sip_listen {address}:5060
call_max_calls 64
call_local_timeout 60
audio_player aufile,{directory}/heard.wav
audio_source aufile,{shared}/speech.wav
audio_alert aufile,{directory}/alert.wav
ausrc_srate {SPEECH_RATE_HZ}
ausrc_channels 1
rtp_timeout 30
module_path /usr/lib/baresip/modules
{chr(10).join(f"module {name}.so" for name in ["stdio", "aufile", *loaded])}
module_tmp account.so
module_app menu.so
"""
    write(directory / "config", config)
    write(directory / "accounts", f"<sip:{user}@{address}>;regint=0;{account};audio_codecs={','.join(codecs)}\n")
    write(directory / "contacts", "")


SERVICES = [
    web_command,
    dns_command,
    ssh_command,
    mail_command,
    mqtt_command,
    ntp_command,
    redis_command,
    postgres_command,
    rsync_command,
    snmp_command,
    phone_command,
]


def start_services(namespace: str, address: str, directory: Path, shared: Path) -> None:
    """Start all services of one server host; `remove_network` ends them with the namespace."""
    directory.mkdir()
    directory.chmod(0o755)
    Path("/run/sshd").mkdir(exist_ok=True)
    for service in SERVICES:
        command = service(directory, shared, address)
        log = (directory / f"{service.__name__}.out").open("w")
        subprocess.Popen(
            ["ip", "netns", "exec", namespace, *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=directory,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
        )
    wait_for_ports(namespace)


def wait_for_ports(namespace: str, timeout_s: float = 30) -> None:
    deadline_s = time.monotonic() + timeout_s
    missing: set[tuple[str, int]] = set()
    while time.monotonic() < deadline_s:
        command = ["ip", "netns", "exec", namespace, "ss", "-Hlntu"]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        fields = [line.split() for line in listing.splitlines()]
        open_ports = {(field[0], int(field[4].rsplit(":", 1)[1])) for field in fields}
        missing = {(kind, port) for kind, ports in LISTENING_PORTS.items() for port in ports} - open_ports
        if not missing:
            return
        time.sleep(0.5)
    raise RuntimeError(f"{namespace}: nothing listens on {sorted(missing)}")


def fill_databases(namespace: str, address: str) -> None:
    inside = ["ip", "netns", "exec", namespace]
    pgbench = [f"{POSTGRES_PROGRAMS[0]}/pgbench", "-h", address, "-U", "postgres"]
    run(*inside, *pgbench, "-i", "-q", "-s", "1", "postgres")
    commands = [f"SET user:{number} {'x' * (number * 37 % 3000)}" for number in range(200)]
    commands += [f"RPUSH queue item{number}" for number in range(300)]
    run(*inside, "redis-cli", "-h", address, input="\n".join(commands), text=True)
