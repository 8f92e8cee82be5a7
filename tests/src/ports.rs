//! Loopback ports that no other test is given.
//!
//! The ports are below the kernel's range for outgoing connections, so no client's port can collide. A file lock that
//! lives as long as this process keeps the tests of two programs from sharing a port.

use std::collections::HashMap;
use std::fs::{self, File};
use std::net::TcpListener;
use std::sync::Mutex;

static HELD: Mutex<Option<HashMap<u16, File>>> = Mutex::new(None);

/// Returns a TCP port that is free on every address and stays reserved for this process.
pub fn free() -> u16 {
    let folder = std::path::Path::new("/tmp/bkt-ports");
    let _ = fs::create_dir_all(folder);
    let _ = fs::set_permissions(folder, std::os::unix::fs::PermissionsExt::from_mode(0o1777));
    let mut held = HELD.lock().unwrap_or_else(|broken| broken.into_inner());
    let held = held.get_or_insert_default();
    for _ in 0..2000 {
        let port = fastrand::u16(20_000..32_000);
        if held.contains_key(&port) {
            continue;
        }
        let Ok(lock) = File::create(folder.join(port.to_string())) else {
            continue;
        };
        if lock.try_lock().is_err() {
            continue;
        }
        // Binding 0.0.0.0 fails when any address holds the port.
        if TcpListener::bind(("0.0.0.0", port)).is_ok() {
            held.insert(port, lock);
            return port;
        }
    }
    panic!("no free TCP port between 20000 and 32000");
}
