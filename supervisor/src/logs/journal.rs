//! journald's native protocol: one datagram per line, one field per line of it, and a length before each value with
//! line feeds.
//!
//! Each encoded datagram follows its length, four bytes in native byte order, so that one chunk holds many datagrams.

use super::filter::Level;
use super::json_scan::{JsonPairs, JsonValue, unescape};
use super::line_format::LineOrigin;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

/// Path of journald's socket.
pub(super) const SOCKET: &str = "/run/systemd/journal/socket";

/// Field with the broker's pid, never the supervisor's, because people search the journal for a broker by this field.
const TENANT_PID: &str = "TENANT_PID";

/// Appends one canonical line as a datagram after its length.
pub(super) fn encode(origin: &LineOrigin, line: &[u8], out: &mut Vec<u8>) {
    let Ok(text) = std::str::from_utf8(line) else {
        return;
    };
    let text = text.trim_end();
    if !text.starts_with('{') {
        return;
    }
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    let identifier = match &origin.tenant {
        Some(tenant) => {
            field(out, "TENANT", tenant.as_str());
            format!("brokkr:{}", tenant.as_str())
        }
        None => "brokkr-supervisor".to_owned(),
    };
    field(out, "SYSLOG_IDENTIFIER", &identifier);
    let pid_field = match origin.is_supervisor || origin.tenant.is_none() {
        true => "SUPERVISOR_PID",
        false => TENANT_PID,
    };
    field(out, pid_field, &origin.pid.to_string());
    let mut level = Level::Info;
    for (key, value) in JsonPairs::new(text) {
        let (JsonValue::String(raw) | JsonValue::Bare(raw)) = value;
        let value = if matches!(value, JsonValue::String(_)) {
            unescape(raw)
        } else {
            raw.into()
        };
        match key {
            "tenant" | "pid" => {}
            // On a supervisor's line these keys name the broker that the line is about. On a broker's own line they are
            // ordinary fields of that broker.
            "of_pid" | "broker_pid" if origin.is_supervisor && origin.tenant.is_some() => {
                field(out, TENANT_PID, &value);
            }
            "level" => level = Level::parse(&value),
            "message" => field(out, "MESSAGE", &value),
            "timestamp" => field(out, "TIMESTAMP", &value),
            "target" => field(out, "TARGET", &value),
            other => field(out, &field_name(&unescape(other)), &value),
        }
    }
    field(out, "PRIORITY", &level.priority().to_string());
    let length = u32::try_from(out.len() - start - 4).unwrap_or(0);
    out[start..start + 4].copy_from_slice(&length.to_ne_bytes());
}

/// Returns an iterator over the datagrams of an encoded chunk.
pub(super) fn datagrams(mut chunk: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, rest) = chunk.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_ne_bytes(*length)).ok()?;
        let datagram = rest.get(..length)?;
        chunk = &rest[length..];
        Some(datagram)
    })
}

fn field(out: &mut Vec<u8>, name: &str, value: &str) {
    out.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        out.push(b'\n');
        out.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        out.push(b'=');
    }
    out.extend_from_slice(value.as_bytes());
    out.push(b'\n');
}

/// Turns a broker's key into a journal field name: upper case, digits, underscores, at most 64 bytes. A name that
/// journald or the supervisor uses (origin, unit) gets the prefix `F_`, so that no broker can set that field.
fn field_name(key: &str) -> String {
    const OURS: [&str; 10] = [
        "MESSAGE",
        "MESSAGE_ID",
        "PRIORITY",
        "TENANT",
        TENANT_PID,
        "TARGET",
        "TIMESTAMP",
        "UNIT",
        "USER_UNIT",
        "INVOCATION_ID",
    ];
    const PREFIXES: [&str; 4] = ["SYSLOG_", "OBJECT_", "COREDUMP_", "SUPERVISOR_"];
    let upper = key.chars().map(|c| {
        if c.is_ascii_alphanumeric() {
            c.to_ascii_uppercase()
        } else {
            '_'
        }
    });
    let mut name: String = upper.take(62).collect();
    let starts_badly = !name.starts_with(|c: char| c.is_ascii_uppercase());
    if starts_badly || OURS.contains(&name.as_str()) || PREFIXES.iter().any(|p| name.starts_with(p))
    {
        name.insert_str(0, "F_");
    }
    name
}

/// Sends one datagram; if too large for the socket, as a sealed memory file, as journald's protocol prescribes.
pub(super) fn send(socket: &UnixDatagram, path: &Path, datagram: &[u8]) -> io::Result<()> {
    match socket.send_to(datagram, path) {
        Ok(_) => Ok(()),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EMSGSIZE | libc::ENOBUFS)) => {
            send_file(socket, path, datagram)
        }
        Err(error) => Err(error),
    }
}

fn send_file(socket: &UnixDatagram, path: &Path, datagram: &[u8]) -> io::Result<()> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut file = File::from(memfd_create(c"brokkr-log", flags)?);
    file.write_all(datagram)?;
    let seals = SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_WRITE
        | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    let files = [file.as_raw_fd()];
    let control = [ControlMessage::ScmRights(&files)];
    let address = UnixAddr::new(path)?;
    let empty: [IoSlice<'_>; 0] = [];
    loop {
        match sendmsg(
            socket.as_raw_fd(),
            &empty,
            &control,
            MsgFlags::empty(),
            Some(&address),
        ) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use brokkr_tenant::TenantName;
    use nix::sys::socket::{ControlMessageOwned, recvmsg};
    use std::io::{IoSliceMut, Read, Seek};

    fn acme() -> LineOrigin {
        LineOrigin::new(Some(TenantName::parse("acme").unwrap()), 7)
    }

    #[test]
    fn a_line_becomes_fields_and_a_broker_cannot_speak_for_another_unit() {
        let mut out = Vec::new();
        let line = br#"{"timestamp":"T","level":"ERROR","tenant":"acme","pid":7,"target":"x","message":"a\nb","agent_id":5,"object_systemd_unit":"evil","_pid":1}"#;
        encode(&acme(), line, &mut out);
        let all: Vec<&[u8]> = datagrams(&out).collect();
        assert_eq!(all.len(), 1);
        let text = String::from_utf8_lossy(all[0]);
        assert!(
            text.starts_with("TENANT=acme\nSYSLOG_IDENTIFIER=brokkr:acme\nTENANT_PID=7\n"),
            "{text}"
        );
        assert!(
            text.contains("MESSAGE\n\u{3}\0\0\0\0\0\0\0a\nb\n"),
            "{text:?}"
        );
        assert!(
            text.contains("\nAGENT_ID=5\n") && text.contains("\nPRIORITY=3\n"),
            "{text}"
        );
        assert!(
            text.contains("\nF_OBJECT_SYSTEMD_UNIT=evil\n") && text.contains("\nF__PID=1\n"),
            "{text}"
        );
    }

    #[test]
    fn a_supervisors_line_about_a_tenant_has_the_brokers_pid_or_none() {
        let origin = LineOrigin::supervisor(Some(TenantName::parse("acme").unwrap()));
        let fields = |line: &[u8]| {
            let mut out = Vec::new();
            encode(&origin, line, &mut out);
            String::from_utf8(datagrams(&out).next().unwrap().to_vec()).unwrap()
        };
        let about_none = fields(br#"{"tenant":"acme","pid":1,"message":"stopped"}"#);
        let ours = format!("\nSUPERVISOR_PID={}\n", std::process::id());
        assert!(about_none.starts_with("TENANT=acme\n"), "{about_none}");
        assert!(
            about_none.contains(&ours) && !about_none.contains("TENANT_PID"),
            "{about_none}"
        );
        for key in ["of_pid", "broker_pid"] {
            let about = format!(r#"{{"tenant":"acme","pid":1,"message":"ready","{key}":4711}}"#);
            let about = fields(about.as_bytes());
            assert!(
                about.contains("\nTENANT_PID=4711\n") && about.contains(&ours),
                "{about}"
            );
        }
    }

    #[test]
    fn a_datagram_too_large_for_the_socket_goes_as_a_memory_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let journald = UnixDatagram::bind(&path).unwrap();
        let socket = UnixDatagram::unbound().unwrap();
        let datagram = vec![b'x'; 4 << 20];
        send(&socket, &path, &datagram).unwrap();
        let mut buffer = [0; 16];
        let mut io = [IoSliceMut::new(&mut buffer)];
        let mut space = nix::cmsg_space!(i32);
        let message = recvmsg::<UnixAddr>(
            journald.as_raw_fd(),
            &mut io,
            Some(&mut space),
            MsgFlags::empty(),
        )
        .unwrap();
        let files = message.cmsgs().unwrap().find_map(|c| match c {
            ControlMessageOwned::ScmRights(files) => Some(files),
            _ => None,
        });
        // The test opens the descriptor again by path, because taking it over would need unsafe code.
        let number = files.unwrap()[0];
        let mut file = File::open(format!("/proc/self/fd/{number}")).unwrap();
        nix::unistd::close(number).unwrap();
        file.rewind().unwrap();
        let mut received = Vec::new();
        file.read_to_end(&mut received).unwrap();
        assert!(received == datagram);
    }
}
