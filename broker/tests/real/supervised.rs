//! Tests of `brokkr-broker serve` as a supervisor starts it: descriptors, datagrams, orders.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use brokkr_tenant::{InstanceConfig, Layer, Mode, TenantName, resolve};
use brokkr_tests::{Addr, Connection, PgServer, Response, TestDir, bin, until};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

struct Instance {
    place: TestDir,
    listener: TcpListener,
    notify: UnixDatagram,
    child: Child,
}

impl Drop for Instance {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Instance {
    fn start(server: &PgServer, connections: u32) -> Self {
        Self::start_on(
            server,
            connections,
            TcpListener::bind("127.0.0.1:0").unwrap(),
        )
    }

    fn start_on(server: &PgServer, connections: u32, listener: TcpListener) -> Self {
        let place = TestDir::new();
        listener.set_nonblocking(true).unwrap();
        let private = UnixListener::bind(place.join("private")).unwrap();
        private.set_nonblocking(true).unwrap();
        let notify = UnixDatagram::bind(place.join("notify")).unwrap();
        notify.set_nonblocking(true).unwrap();
        let url = server.url("brokkr", "brokkr");
        let pairs = [
            ("database.url", url.as_str()),
            ("database.schema", "tenant_acme"),
            ("database.pool_size", "10"),
            ("http.listen", "127.0.0.1:3001"),
        ];
        let layer = Layer::from_pairs("the test", pairs);
        let instance = InstanceConfig {
            version: brokkr_tenant::INSTANCE_CONFIG_VERSION,
            tenant: TenantName::parse("acme").unwrap(),
            instance: 1,
            state_dir: place.folder("state", 0o700),
            connections,
            grace: std::time::Duration::from_secs(20),
            core: false,
            isolation_required: false,
            config: resolve(&[layer], Mode::Supervised).unwrap().config,
        };
        let mut memfd = File::from(memfd_create(c"config", MFdFlags::empty()).unwrap());
        memfd.write_all(instance.to_json().as_bytes()).unwrap();
        let inherit = |fd: &dyn AsRawFd, borrowed: std::os::fd::BorrowedFd<'_>| {
            fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
            fd.as_raw_fd()
        };
        let script = format!(
            "exec 3<&{} 4<&{} 5<&{}; LISTEN_PID=$$ exec {} serve",
            inherit(&listener, listener.as_fd()),
            inherit(&private, private.as_fd()),
            inherit(&memfd, memfd.as_fd()),
            bin::broker().display(),
        );
        let child = Command::new("bash")
            .args(["-c", &script])
            .env_clear()
            .envs([
                ("LISTEN_FDS", "2"),
                ("LISTEN_FDNAMES", "http:private"),
                ("BROKKR_CONFIG_FD", "5"),
            ])
            .env("NOTIFY_SOCKET", place.join("notify"))
            .stdin(Stdio::null())
            .stderr(File::create(place.join("log")).unwrap())
            .spawn()
            .unwrap();
        Instance {
            place,
            listener,
            notify,
            child,
        }
    }

    fn hears(&self, line: &str) {
        until(Duration::from_secs(20), line, || {
            let mut datagram = [0; 4096];
            let n = self.notify.recv(&mut datagram).ok()?;
            String::from_utf8_lossy(&datagram[..n])
                .lines()
                .any(|said| said == line)
                .then_some(())
        });
    }

    fn private(&self, method: &str, path: &str, body: Option<&str>) -> Response {
        let mut connection = Connection::open(&Addr::Unix(self.place.join("private"))).unwrap();
        connection
            .request(method, path, &[], body.map(str::as_bytes))
            .unwrap()
    }

    fn public(&self) -> Addr {
        Addr::Tcp(self.listener.local_addr().unwrap().to_string())
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).unwrap();
    }

    fn log(&self) -> String {
        let mut text = String::new();
        File::open(self.place.join("log"))
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        text
    }
}

#[test]
fn a_supervised_broker_takes_its_sockets_obeys_orders_and_drains() {
    let server = PgServer::start();
    let mut instance = Instance::start(&server, 2);
    instance.hears("READY=1");
    assert!(instance.place.join("state/admin.pak").exists());
    assert_eq!(
        instance.private("GET", "/healthz", None).expect(200).text(),
        "OK"
    );
    assert_eq!(
        instance.private("GET", "/readyz", None).expect(200).text(),
        "Ready"
    );

    // The broker follows the prober's verdict while its own connections do not contradict it.
    instance
        .private(
            "PUT",
            "/server",
            Some(r#"{"up":false,"reason":"standby","read_only":true}"#),
        )
        .expect(204);
    until(Duration::from_secs(5), "the verdict to count", || {
        let ready = instance.private("GET", "/readyz", None);
        (ready.status == 503 && ready.text() == "standby").then_some(())
    });
    instance
        .private("PUT", "/server", Some(r#"{"up":true}"#))
        .expect(204);
    instance.private("GET", "/readyz", None).expect(200);

    let pool = instance.private("GET", "/pool", None).expect(200).json();
    assert_eq!(pool["connections"], 2);
    let pool = instance
        .private("PUT", "/pool", Some(r#"{"connections":10}"#))
        .expect(200)
        .json();
    assert_eq!(pool["connections"], 10);
    instance
        .private("PUT", "/pool", Some(r#"{"connections":0}"#))
        .expect(400);

    // A request makes the broker hold a connection; draining releases the connection and reports so.
    let mut kept = Connection::open(&instance.public()).unwrap();
    let pak = std::fs::read_to_string(instance.place.join("state/admin.pak")).unwrap();
    let agents = |c: &mut Connection| {
        c.request(
            "GET",
            "/api/v1/agents",
            &[("Authorization", pak.trim())],
            None,
        )
        .unwrap()
    };
    agents(&mut kept).expect(200);
    let pool = instance.private("GET", "/pool", None).json();
    assert_eq!(pool["held"], 1);
    // The broker names the backends that the server shows for it.
    let shown = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'brokkr:%' AND backend_type = 'client backend'";
    let rows = server.client().query(shown, &[]).unwrap();
    let shown: Vec<i32> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(pool["backends"], serde_json::json!(shown));
    instance.signal(Signal::SIGTERM);
    instance.hears("STOPPING=1");
    instance.hears("X_CONNECTIONS=0");
    instance.private("GET", "/healthz", None).expect(200);
    let last = agents(&mut kept).expect(200);
    assert!(last.closes());
    let status = until(Duration::from_secs(5), "the end", || {
        instance.child.try_wait().unwrap()
    });
    assert!(status.success());

    for line in instance.log().lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(
            line["timestamp"].is_string()
                && line["level"].is_string()
                && line["message"].is_string(),
            "{line}"
        );
    }
}

#[test]
fn a_successor_on_the_same_socket_takes_over_without_a_refused_connection() {
    let server = PgServer::start();
    let mut first = Instance::start(&server, 10);
    first.hears("READY=1");
    let second = Instance::start_on(&server, 2, first.listener.try_clone().unwrap());
    second.hears("READY=1");
    first.signal(Signal::SIGTERM);
    first.hears("STOPPING=1");
    let ended = until(Duration::from_secs(10), "the first to end", || {
        Connection::open(&first.public())
            .unwrap()
            .request("GET", "/healthz", &[], None)
            .unwrap()
            .expect(200)
            .text();
        first.child.try_wait().unwrap()
    });
    assert!(ended.success());
    Connection::open(&first.public())
        .unwrap()
        .request("GET", "/healthz", &[], None)
        .unwrap()
        .expect(200)
        .text();
}

#[test]
fn nothing_secret_and_no_stray_descriptor_is_left_in_the_process() {
    let server = PgServer::start();
    let instance = Instance::start(&server, 10);
    instance.hears("READY=1");
    let proc_ = PathBuf::from(format!("/proc/{}", instance.pid()));
    // Descriptor 5 was the configuration, so the number may be in use for another file now.
    let fifth = std::fs::read_link(proc_.join("fd/5"));
    assert!(!fifth.is_ok_and(|target| target.display().to_string().contains("memfd")));
    for file in ["environ", "cmdline"] {
        let text = String::from_utf8_lossy(&std::fs::read(proc_.join(file)).unwrap()).into_owned();
        assert!(!text.contains("postgres://"), "{file}: {text}");
    }
    let threads = until(Duration::from_secs(20), "an idle broker's threads", || {
        let threads = std::fs::read_dir(proc_.join("task")).unwrap().count();
        (threads <= 4).then_some(threads)
    });
    assert!(threads <= 4);
}

#[test]
fn a_supervised_broker_waits_for_its_server_and_says_so_and_stops_when_told() {
    let server = PgServer::start();
    server.stop();
    let mut instance = Instance::start(&server, 10);
    let mut said = String::new();
    until(Duration::from_secs(10), "STATUS", || {
        let mut datagram = [0; 4096];
        let n = instance.notify.recv(&mut datagram).ok()?;
        said = String::from_utf8_lossy(&datagram[..n]).into_owned();
        said.starts_with("STATUS=waiting for the database")
            .then_some(())
    });
    instance.private("GET", "/healthz", None).expect(200);
    assert_eq!(
        instance.private("GET", "/readyz", None).expect(503).text(),
        "starting"
    );
    instance.signal(Signal::SIGTERM);
    let status = until(Duration::from_secs(5), "the end", || {
        instance.child.try_wait().unwrap()
    });
    assert!(status.success());
}
