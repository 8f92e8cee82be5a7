//! A private PostgreSQL server for one test.

use std::{
    fs,
    net::TcpListener,
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

pub(crate) struct Certificates {
    pub(crate) ca: PathBuf,
    /// An authority that has signed no certificate of the test.
    pub(crate) stranger: PathBuf,
    /// The certificate and key of the client `certified`, signed by the authority.
    pub(crate) client: (PathBuf, PathBuf),
    cert: PathBuf,
    key: PathBuf,
}

pub(crate) struct Server {
    child: Child,
    _dir: tempfile::TempDir,
    pub(crate) socket: PathBuf,
    pub(crate) port: u16,
}

/// Prints the reason why a test is skipped.
fn skip(why: &str) {
    eprintln!("skipped: {why}");
}

/// Returns the folder of the newest server programs.
fn programs() -> Option<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .ok()?
        .flatten()
        .map(|entry| entry.path().join("bin"))
        .filter(|bin| bin.join("initdb").exists())
        .collect();
    found.sort();
    found.pop()
}

/// Returns the user and group that the server runs as, because the server refuses to run as root.
fn user() -> Option<(u32, u32)> {
    use std::os::unix::fs::MetadataExt;
    if fs::metadata("/proc/self").ok()?.uid() != 0 {
        return None;
    }
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let line = passwd.lines().find(|line| line.starts_with("postgres:"));
    let mut ids = line
        .into_iter()
        .flat_map(|line| line.split(':').skip(2))
        .map_while(|id| id.parse().ok());
    Some((ids.next().unwrap_or(65534), ids.next().unwrap_or(65534)))
}

fn as_user(program: PathBuf, dir: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if let Some((uid, gid)) = user() {
        command.uid(uid).gid(gid);
    }
    command
}

fn give(path: &Path) {
    if let Some((uid, gid)) = user() {
        chown(path, Some(uid), Some(gid)).unwrap();
    }
}

impl Server {
    /// Starts a server, with TLS when certificates are given. Returns `None`, and prints why, when the test must be
    /// skipped.
    pub(crate) fn start(tls: Option<&Certificates>) -> Option<Self> {
        let Some(bin) = programs() else {
            skip("no PostgreSQL server is installed");
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        give(dir.path());
        let data = dir.path().join("data");
        let made = as_user(bin.join("initdb"), dir.path())
            .arg("-D")
            .arg(&data)
            .args(["-U", "postgres", "-A", "trust", "-N"])
            .status();
        assert!(made.unwrap().success(), "initdb failed");
        let hba = "local all all trust\nhostssl all certified 127.0.0.1/32 cert\nhostnossl all plain 127.0.0.1/32 trust\nhostssl all plain 127.0.0.1/32 reject\n\
                   host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n\
                   host all postgres ::1/128 trust\n";
        fs::write(data.join("pg_hba.conf"), hba).unwrap();
        if let Some(certs) = tls {
            let files = [
                (&certs.cert, "server.crt"),
                (&certs.key, "server.key"),
                (&certs.ca, "root.crt"),
            ];
            for (from, name) in files {
                let to = data.join(name);
                fs::copy(from, &to).unwrap();
                fs::set_permissions(&to, std::os::unix::fs::PermissionsExt::from_mode(0o600))
                    .unwrap();
                give(&to);
            }
        }
        // Another process may take the port before the server binds it; the test then fails with the server's own
        // error.
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let child = as_user(bin.join("postgres"), dir.path())
            .arg("-D")
            .arg(&data)
            .args(["-F", "-h", "localhost", "-p", &port.to_string()])
            .args(["-c", if tls.is_some() { "ssl=on" } else { "ssl=off" }])
            .args([
                "-c",
                if tls.is_some() {
                    "ssl_ca_file=root.crt"
                } else {
                    "ssl_ca_file="
                },
            ])
            .arg("-k")
            .arg(dir.path())
            .spawn()
            .unwrap();
        let mut server = Self {
            child,
            socket: dir.path().to_owned(),
            _dir: dir,
            port,
        };
        let until = Instant::now() + Duration::from_secs(30);
        let probe = format!(
            "postgres://postgres@/postgres?host={}&port={port}",
            server.socket.display()
        );
        let probe = brokkr_tenant::DatabaseUrl::parse(&probe).unwrap();
        while crate::connect(&probe, &crate::Options::new("probe")).is_err() {
            assert!(
                server.child.try_wait().unwrap().is_none(),
                "the server exited"
            );
            assert!(Instant::now() < until, "the server did not come up");
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(server)
    }

    pub(crate) fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // SIGINT makes the postmaster end its children first; SIGKILL would leave them running for a moment.
        let pid = self.child.id().to_string();
        let _ = Command::new("kill").args(["-INT", &pid]).status();
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

/// Makes an authority, a certificate for `localhost` signed by it, and a second authority without any signed
/// certificate.
pub(crate) fn certificates(dir: &Path) -> Option<Certificates> {
    let openssl = |args: &str| {
        let status = Command::new("openssl")
            .args(args.split(' '))
            .current_dir(dir)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        status.is_ok_and(|status| status.success())
    };
    if !openssl("version") {
        skip("openssl is not installed");
        return None;
    }
    fs::write(
        dir.join("ext"),
        "subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n",
    )
    .unwrap();
    for line in [
        "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority -keyout ca.key -out ca.pem",
        "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=stranger -keyout stranger.key -out stranger.pem",
        "req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout server.key -out server.csr",
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out server.pem",
        "req -newkey rsa:2048 -nodes -subj /CN=certified -keyout client.key -out client.csr",
        "x509 -req -in client.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out client.pem",
    ] {
        assert!(openssl(line), "openssl {line}");
    }
    let path = |name: &str| dir.join(name);
    Some(Certificates {
        ca: path("ca.pem"),
        stranger: path("stranger.pem"),
        client: (path("client.pem"), path("client.key")),
        cert: path("server.pem"),
        key: path("server.key"),
    })
}
