//! The server is out of connections, or out of disk.

use crate::scene::{Fails, Fault};
use brokkr_tests::{Host, pg, place};
use postgres::Client;
use std::fs::File;
use std::io::Write;
use std::sync::Mutex;
use std::time::Duration;

#[test]
fn a_server_out_of_connections_is_waited_for() {
    let host = Host::builder()
        .pg(pg::Options::new().max_connections(30))
        .build();
    host.server().role("stranger", "");
    let tenants = ["acme", "globex"].map(|name| host.tenant(name).up());
    let others: Mutex<Vec<Client>> = Mutex::default();
    let take_all = || {
        let mut others = others.lock().unwrap();
        // Whatever a broker loses is taken before it can have it back.
        for _ in 0..10 {
            while let Ok(client) = host.server().try_client("brokkr", "stranger") {
                others.push(client);
            }
            host.server().sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                 WHERE application_name LIKE 'brokkr:%' AND application_name NOT LIKE '%.supervisor'",
            );
        }
    };
    Fault {
        name: "PostgreSQL out of connections",
        fails: Fails::All,
        lasts: Duration::from_secs(2),
        begin: &take_all,
        end: &|| others.lock().unwrap().clear(),
    }
    .over(&host, &tenants);
}

#[test]
fn a_server_out_of_disk_is_not_ready_until_it_has_room_again() {
    if !place::is_root() {
        println!("skipped: a disk to be filled needs root");
        return;
    }
    let host = Host::builder()
        .pg(pg::Options::new().small_disk(64))
        .build();
    let (named, reached) = host.server().small_disk();
    host.server().sql(&format!(
        "CREATE TABLESPACE small LOCATION '{}'",
        named.display()
    ));
    host.server()
        .client_as("postgres", "postgres")
        .batch_execute("ALTER DATABASE brokkr SET TABLESPACE small")
        .unwrap();
    let tenants = ["acme", "globex"].map(|name| host.tenant(name).up());
    let filler = reached.join("filler");
    let fill = || {
        let mut file = File::create(&filler).unwrap();
        for size in [1 << 20, 4096, 1] {
            while file.write_all(&vec![0; size]).is_ok() {}
        }
    };
    Fault {
        name: "PostgreSQL out of disk",
        fails: Fails::Writes,
        lasts: Duration::from_secs(3),
        begin: &fill,
        end: &|| std::fs::remove_file(&filler).unwrap(),
    }
    .over(&host, &tenants);
}
