//! The host under test, and waiting until it has recovered.

use super::client::{Address, Shared};
use super::ledger::{Crash, Ledger, Row};
use crate::host::{Host, Status, Tenant, TenantStatus, Wrapper};
use crate::wait::{until, until_ok};
use crate::{Proxy, ports, procs};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

/// Longest wait for recovery, also on a loaded machine and after the longest backoff of a tenant.
pub const WHOLE: Duration = Duration::from_secs(120);

/// The extra tenant that exits at once, from time to time.
pub const LOOPER: &str = "looper";

/// The pool size of every tenant; a changed file has one connection less, or this size again.
const POOL: u32 = 4;

/// A host with its tenants under load, and the account of the run.
#[derive(Debug)]
pub struct World<'h> {
    /// The host.
    pub host: &'h Host,
    /// The script in place of the broker.
    pub wrapper: Wrapper,
    /// The proxy between the host and its PostgreSQL.
    pub network: Proxy,
    /// State that the clients share.
    pub shared: Arc<Shared>,
    /// The tenants under load.
    pub tenants: Vec<Tenant<'h>>,
    texts: Mutex<BTreeMap<String, (String, u32)>>,
    /// Number of kills of each tenant's brokers, by the test or by the supervisor because of the test.
    kills: Mutex<BTreeMap<String, u64>>,
    /// Names of the guest's agents whose creation was acknowledged.
    pub guests: Mutex<Vec<String>>,
    /// The crashes of PostgreSQL.
    pub crashes: Mutex<Vec<Crash>>,
    /// Locked while a fault takes away one of the two holders of a tenant's socket, supervisor or broker, until the
    /// holder is back.
    holders: Mutex<()>,
    /// True when PostgreSQL had a fault since the host last recovered.
    server_suffered: AtomicBool,
    descriptors: usize,
}

impl<'h> World<'h> {
    /// Writes the tenants' files and waits until all tenants are ready.
    pub fn new(host: &'h Host, tenants: usize) -> Self {
        let wrapper = host.wrap_broker();
        let network = Proxy::to(host.server().port());
        let url = network.url("brokkr", "brokkr");
        host.set("defaults.database.url", &format!("{url:?}"));
        let mut texts = BTreeMap::new();
        let tenants: Vec<Tenant<'_>> = (0..tenants)
            .map(|n| {
                let name = format!("t{n:02}");
                let listen = format!("127.0.0.1:{}", ports::free());
                texts.insert(name.clone(), (listen.clone(), POOL));
                host.tenant(&name).listen(&listen).pool(POOL).write()
            })
            .collect();
        host.tenant(LOOPER).pool(2).write();
        host.up();
        let mut world = Self {
            host,
            wrapper,
            network,
            shared: Arc::default(),
            tenants,
            texts: Mutex::new(texts),
            kills: Mutex::default(),
            guests: Mutex::default(),
            crashes: Mutex::default(),
            holders: Mutex::default(),
            server_suffered: AtomicBool::new(false),
            descriptors: 0,
        };
        world.is_whole();
        world.descriptors = procs::open_files(host.pid()).len();
        world
    }

    /// Adds a line to the diary.
    pub fn note(&self, text: impl std::fmt::Display) {
        self.shared.diary.note(text);
    }

    /// Returns the tenants' addresses for the clients.
    pub fn addresses(&self) -> Vec<Address> {
        self.tenants
            .iter()
            .map(|tenant| Address {
                tenant: tenant.name().into(),
                addr: tenant.addr(),
                pak: tenant.pak(),
            })
            .collect()
    }

    /// Waits for an instance of a tenant and returns its pid.
    ///
    /// # Panics
    /// When there is no instance within `WHOLE`.
    pub fn pid_of(&self, tenant: &str) -> i32 {
        until(WHOLE, format!("an instance of {tenant}"), || {
            self.host.try_status()?.tenant(tenant)?.pid
        })
    }

    /// Returns the length of the host's log in bytes.
    pub fn log_length(&self) -> u64 {
        std::fs::metadata(self.log()).map_or(0, |file| file.len())
    }

    /// Returns the log from byte `length` on, because the whole log is too long to be read repeatedly.
    pub fn log_since(&self, length: u64) -> String {
        let mut text = Vec::new();
        let mut file = File::open(self.log()).unwrap();
        file.seek(SeekFrom::Start(length)).unwrap();
        file.read_to_end(&mut text).unwrap();
        String::from_utf8_lossy(&text).into_owned()
    }

    fn log(&self) -> PathBuf {
        self.host.root().join("log")
    }

    /// Counts unplanned ends of a tenant's brokers that the test has caused.
    pub fn killed(&self, tenant: &str, ends: u64) {
        let mut kills = self
            .kills
            .lock()
            .unwrap_or_else(|broken| broken.into_inner());
        *kills.entry(tenant.into()).or_default() += ends;
    }

    /// Returns a tenant's file and its pool size; `change` switches to the other pool size first.
    pub fn text_of(&self, tenant: &str, change: bool) -> (String, u32) {
        let mut texts = self
            .texts
            .lock()
            .unwrap_or_else(|broken| broken.into_inner());
        let (listen, pool) = texts.get_mut(tenant).expect("a tenant under load");
        if change {
            *pool = if *pool == POOL { POOL - 1 } else { POOL };
        }
        let draft = self.host.tenant(tenant).listen(listen).pool(*pool);
        (draft.text(), *pool)
    }

    /// Locks the field `holders`.
    pub(super) fn lock_holders(&self) -> MutexGuard<'_, ()> {
        self.holders
            .lock()
            .unwrap_or_else(|broken| broken.into_inner())
    }

    /// Notes that the supervisor's knowledge of its server may be outdated.
    pub(super) fn server_suffers_no_more(&self) {
        self.server_suffered.store(true, Ordering::Relaxed);
    }

    /// Waits until the supervisor has asked its server, so that its status of the server is current.
    fn server_is_known(&self) {
        let mut client = self.host.server().client();
        let row = client.query_one("SELECT clock_timestamp()", &[]).unwrap();
        let now: SystemTime = row.get(0);
        until(WHOLE, "the supervisor to ask its server", || {
            let row = client.query_one(
                "SELECT count(*) FROM pg_stat_activity \
                 WHERE application_name LIKE 'brokkr:%.supervisor' AND query_start > $1",
                &[&now],
            );
            (row.unwrap().get::<_, i64>(0) > 0).then_some(())
        });
    }

    /// Waits until every tenant is ready with its present configuration and nothing is pending.
    ///
    /// # Panics
    /// When this takes longer than `WHOLE`.
    pub fn is_whole(&self) -> Duration {
        let began = Instant::now();
        if self.server_suffered.swap(false, Ordering::Relaxed) {
            self.server_is_known();
        }
        self.host.wait(
            WHOLE,
            "every tenant to be ready, nothing pending",
            |status| {
                let named = self.tenants.iter().map(Tenant::name).chain([LOOPER]);
                named.into_iter().all(|name| {
                    status
                        .tenant(name)
                        .is_some_and(|t| t.state == "ready" && t.pending.is_none())
                }) && status.servers.iter().all(|server| server.up)
                    && status.tenants.len() == self.tenants.len() + 1
            },
        );
        began.elapsed()
    }

    /// Checks the host at the end and returns everything that is wrong; the clients' ledgers are checked apart.
    pub fn check_host(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let status = self.host.status();
        wrong.extend(self.unexplained_ends(&status));
        let expected = self.tenants.len() + 1;
        until_ok(WHOLE, "one process for each tenant", || {
            match self.host.broker_pids() {
                pids if pids.len() == expected => Ok(()),
                pids => Err(format!("{pids:?}")),
            }
        });
        // As many descriptors as at the start, after those of the last replacements have been closed.
        let most = self.descriptors + 8;
        until_ok(
            WHOLE,
            format!("at most {most} descriptors"),
            || match procs::open_files(self.host.pid()).len() {
                n if n <= most => Ok(()),
                n => Err(format!("the supervisor holds {n}")),
            },
        );
        let panics = self.host.log();
        let panics = panics.lines().filter(|line| line.contains("panicked"));
        wrong.extend(panics.take(5).map(|line| format!("a panic: {line}")));
        wrong
    }

    /// Returns brokers that ended although the test did not kill them.
    fn unexplained_ends(&self, status: &Status) -> Vec<String> {
        let kills = self
            .kills
            .lock()
            .unwrap_or_else(|broken| broken.into_inner());
        let unexplained = |t: &&TenantStatus| {
            t.name != LOOPER && t.restarts > kills.get(&t.name).copied().unwrap_or(0)
        };
        status
            .tenants
            .iter()
            .filter(unexplained)
            .map(|t| {
                format!(
                    "{} has {} unplanned exits, and the test has killed {:?} of its brokers: {:?}",
                    t.name,
                    t.restarts,
                    kills.get(&t.name),
                    t.last_words
                )
            })
            .collect()
    }

    /// Checks every write, through the API and in the tables, and returns all violations.
    pub fn check_ledgers(&self, ledgers: &[Ledger]) -> Vec<String> {
        let mut wrong = Vec::new();
        let crashes = self
            .crashes
            .lock()
            .unwrap_or_else(|broken| broken.into_inner());
        for tenant in &self.tenants {
            let name = tenant.name();
            let rows = self.rows(name);
            let own = format!("{name}-");
            let strange = rows.iter().filter(|row| !row.name.starts_with(&own));
            wrong.extend(strange.map(|row| format!("{} is in the schema of {name}", row.name)));
            let listed = tenant.api().get("/agents").expect(200).json();
            let listed: BTreeSet<&str> = listed
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|agent| agent["name"].as_str())
                .collect();
            for ledger in ledgers.iter().filter(|ledger| ledger.tenant == name) {
                wrong.extend(ledger.check_rows(&rows, &crashes));
                wrong.extend(ledger.check_living(&listed).err());
            }
        }
        wrong
    }

    fn rows(&self, tenant: &str) -> Vec<Row> {
        let sql = format!(
            "SELECT name, deleted_at IS NOT NULL, status, extract(epoch FROM last_heartbeat)::float8 \
             FROM \"tenant_{tenant}\".agents"
        );
        let rows = self.host.server().client().query(&sql, &[]).unwrap();
        rows.iter()
            .map(|row| Row {
                name: row.get(0),
                deleted: row.get(1),
                status: row.get(2),
                beat: row
                    .get::<_, Option<f64>>(3)
                    .map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs_f64(seconds)),
            })
            .collect()
    }
}
