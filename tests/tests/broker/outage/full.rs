//! The server is out of connections, or out of disk.

use crate::outage::scene::{Fails, Fault};
use brokkr_tests::{Host, pg, test_dir, until};
use postgres::Client;
use std::fs::File;
use std::io::Write;
use std::sync::Mutex;
use std::time::Duration;

/// The last few connections are reserved for superusers.
const MOST: u32 = 30;
const RESERVED: u32 = 3;

/// Terminates every broker's sessions; returns their number and the number of all sessions.
const CUT: &str = "SELECT count(pg_terminate_backend(pid)) FILTER (WHERE application_name LIKE 'brokkr:%' \
                          AND application_name NOT LIKE '%.supervisor'), count(*) \
                     FROM pg_stat_activity WHERE backend_type = 'client backend'";

#[test]
fn a_server_out_of_connections_is_waited_for() {
    let host = Host::builder()
        .pg(pg::Options::new().max_connections(MOST))
        .build();
    host.server().role("stranger", "");
    let tenants = ["acme", "globex"].map(|name| host.tenant(name).up());
    let others: Mutex<Vec<Client>> = Mutex::default();
    // Connected throughout, so that no connection becomes free with it.
    let admin = Mutex::new(host.server().client());
    let take_all = || {
        let mut others = others.lock().unwrap();
        let mut admin = admin.lock().unwrap();
        // Otherwise a broker would reconnect before its lost connection is taken.
        admin
            .batch_execute("ALTER ROLE brokkr CONNECTION LIMIT 0")
            .unwrap();
        until(Duration::from_secs(20), "others to have all", || {
            while let Ok(client) = host.server().try_client("brokkr", "stranger") {
                others.push(client);
            }
            let row = admin.query_one(CUT, &[]).unwrap();
            let (lost, all): (i64, i64) = (row.get(0), row.get(1));
            (lost == 0 && all == i64::from(MOST - RESERVED)).then_some(())
        });
        admin
            .batch_execute("ALTER ROLE brokkr CONNECTION LIMIT -1")
            .unwrap();
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
    if !test_dir::is_root() {
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
