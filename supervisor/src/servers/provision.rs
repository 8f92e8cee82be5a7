//! Provisions a login role for each tenant: the role owns the tenant's schema and nothing else.
//!
//! A thread of its own asks the server what there is, and sends the statements that are missing, before each start of an
//! instance. The statements are made by [`recipe`], a pure function. One request runs at a time, on one connection as
//! the administrator, which is closed when there is nothing to do.

mod credentials;
mod database;
mod recipe;
mod role;
mod sql;
mod sweeper;

pub(crate) use recipe::{role_lockout, role_removal};
pub(crate) use role::{ROLE_PREFIX, role_name};
pub(crate) use sweeper::{SessionLimits, Sweeper};

use super::event_loop;
use super::session::{ProbeFailure, Session};
use brokkr_tenant::{DatabaseUrl, SchemaName, Secret, TenantName, url_file};
use postgres_protocol::password::scram_sha_256;
use recipe::{ObjectFacts, RoleFacts};
use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_local;
use tokio_postgres::error::SqlState;

/// The largest number of requests in the queue; further requests wait for a place.
const REQUESTS: usize = 64;
/// The time after which an unused connection is closed.
const IDLE: Duration = Duration::from_secs(5);
/// The number of tries against locks and concurrent changes, and the pause between two.
const TRIES: usize = 20;
const PAUSE: Duration = Duration::from_millis(100);
/// The longest time for the statements of one tenant. A take-over changes the owner of every table.
const WORK: Duration = Duration::from_secs(10);

/// Waits little for locks, because requests of the running instance wait behind it.
const OWN_LIMITS: &str = "SET lock_timeout TO '500ms'";

/// Errors that pass: a lock not available, a tuple that another session changed, a deadlock, a row that appeared, a lock
/// table that is full.
const PASSING: &[SqlState] = &[
    SqlState::LOCK_NOT_AVAILABLE,
    SqlState::INTERNAL_ERROR,
    SqlState::T_R_DEADLOCK_DETECTED,
    SqlState::UNIQUE_VIOLATION,
    SqlState::DUPLICATE_OBJECT,
    SqlState::OUT_OF_MEMORY,
];

/// The wanted state of a tenant's role and schema.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RoleWish {
    pub(crate) tenant: TenantName,
    pub(crate) schema: SchemaName,
    /// The tenant's URL; its role is replaced.
    pub(crate) url: DatabaseUrl,
    /// The administrator's URL, with the tenant's database.
    pub(crate) admin: DatabaseUrl,
    /// The role that owned the schema before.
    pub(crate) earlier: String,
    /// True while an instance still logs in as that role.
    pub(crate) keep_earlier: bool,
    /// The pool of the instance to start, in connections.
    pub(crate) own_pool: u32,
    /// Roles of tenants that are not provisioned, which keep their databases.
    pub(crate) keep: BTreeSet<String>,
    /// The largest pool of the tenant's instances, in connections.
    pub(crate) pool: u32,
    /// Settings of the role, and their values. A role may change most of them for itself.
    pub(crate) settings: Vec<(&'static str, String)>,
    /// The name of this supervisor, the beginning of each `application_name`.
    pub(crate) supervisor: String,
    /// The file that keeps the login.
    pub(crate) credentials: PathBuf,
}

/// A request to the thread.
#[derive(Debug)]
enum Request {
    /// Bring a tenant's role to how it must be.
    Provision {
        wish: Box<RoleWish>,
        /// True to change the password.
        renew: bool,
        reply: oneshot::Sender<Result<DatabaseUrl, String>>,
    },
    /// Close the databases of a tenant that runs on.
    Guard(Box<RoleWish>),
}

/// A handle to the thread that provisions. The thread ends when the last handle is dropped.
#[derive(Debug, Clone)]
pub(crate) struct Provisioner {
    requests: mpsc::Sender<Request>,
    notices: Arc<Mutex<BTreeSet<String>>>,
}

impl Provisioner {
    /// Starts the thread, which also sweeps. `exclusive` takes every database of the server from the roles that do not
    /// use it.
    ///
    /// # Errors
    /// When the thread or its event loop cannot be made.
    pub(crate) fn start(exclusive: bool, sweeper: Sweeper) -> io::Result<Self> {
        let (requests, inbox) = mpsc::channel(REQUESTS);
        let notices = Arc::default();
        let worker = Worker {
            exclusive,
            session: None,
            guarded: BTreeSet::new(),
            asked_for_password: BTreeSet::new(),
            notices: Arc::clone(&notices),
        };
        let runtime = event_loop()?;
        std::thread::Builder::new()
            .name("provision".to_owned())
            .spawn(move || {
                let work = async {
                    let sweeping = spawn_local(sweeper.run());
                    worker.run(inbox).await;
                    sweeping.abort();
                };
                tokio::task::LocalSet::new().block_on(&runtime, work);
                runtime.shutdown_background();
            })?;
        Ok(Self { requests, notices })
    }

    /// Brings the tenant's role and schema to how they must be, and returns the URL that logs in as the role.
    ///
    /// # Errors
    /// The reason for the operator; nothing is changed then, except that a new password may be in the file.
    pub(crate) async fn provision(&self, wish: RoleWish) -> Result<DatabaseUrl, String> {
        self.ask(wish, false).await
    }

    /// Like [`Provisioner::provision`], with a new password.
    pub(crate) async fn renew(&self, wish: RoleWish) -> Result<DatabaseUrl, String> {
        self.ask(wish, true).await
    }

    async fn ask(&self, wish: RoleWish, renew: bool) -> Result<DatabaseUrl, String> {
        let (reply, answer) = oneshot::channel();
        let wish = Box::new(wish);
        let request = Request::Provision { wish, renew, reply };
        let gone = || "the thread that provisions roles has ended".to_owned();
        self.requests.send(request).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// Closes the databases that a running tenant uses to what every role may do by default, as a start of it would.
    pub(crate) async fn guard(&self, wish: RoleWish) {
        // An error means that the thread has ended.
        let _ = self.requests.send(Request::Guard(Box::new(wish))).await;
    }

    /// Returns what the operator should know about the servers' protection.
    pub(crate) fn notices(&self) -> Vec<String> {
        let notices = self.notices.lock().unwrap_or_else(PoisonError::into_inner);
        notices.iter().cloned().collect()
    }
}

struct Worker {
    exclusive: bool,
    /// The connection in use, and its URL.
    session: Option<(DatabaseUrl, Session)>,
    /// The databases that have been closed to other roles.
    guarded: BTreeSet<DatabaseUrl>,
    /// The databases whose `pg_hba.conf` has been tried with a wrong password.
    asked_for_password: BTreeSet<DatabaseUrl>,
    notices: Arc<Mutex<BTreeSet<String>>>,
}

impl Worker {
    async fn run(mut self, mut inbox: mpsc::Receiver<Request>) {
        loop {
            let next = tokio::time::timeout(IDLE, inbox.recv()).await;
            let request = match next {
                Ok(Some(request)) => request,
                Ok(None) => return,
                Err(_) => {
                    self.session = None;
                    match inbox.recv().await {
                        Some(request) => request,
                        None => return,
                    }
                }
            };
            match request {
                Request::Provision { wish, renew, reply } => {
                    let answer = self.serve(&wish, renew).await;
                    // An error means that the instance is not wanted any more.
                    let _ = reply.send(answer);
                }
                Request::Guard(wish) => self.guard(&wish, None).await,
            }
        }
    }

    async fn serve(&mut self, wish: &RoleWish, renew: bool) -> Result<DatabaseUrl, String> {
        let mut tries = 1;
        loop {
            let outcome = self.attempt(wish, renew && tries == 1).await;
            match outcome {
                Err(Failure::Server(failure)) => {
                    // The connection may be at fault.
                    self.session = None;
                    if !failure.has_code(PASSING) || tries == TRIES {
                        let reason = failure.reason();
                        return Err(format!("its role cannot be provisioned: {reason}"));
                    }
                    tries += 1;
                    tokio::time::sleep(PAUSE).await;
                }
                Err(Failure::Refused(reason)) => {
                    return Err(format!("its role cannot be provisioned: {reason}"));
                }
                Ok(login) => {
                    self.guard(wish, Some(&login)).await;
                    return Ok(login);
                }
            }
        }
    }

    /// Returns the connection to the tenant's database as the administrator.
    async fn session(&mut self, wish: &RoleWish) -> Result<&Session, ProbeFailure> {
        let open = self.session.take();
        let fits =
            |(url, session): &(DatabaseUrl, Session)| *url == wish.admin && !session.has_ended();
        let open = match open.filter(fits) {
            Some(open) => open,
            None => {
                let session = Session::open(&wish.admin, &session_name(wish)).await?;
                session.set_own_settings().await?;
                session.ask(OWN_LIMITS).await?;
                (wish.admin.clone(), session)
            }
        };
        Ok(&self.session.insert(open).1)
    }

    async fn attempt(&mut self, wish: &RoleWish, renew: bool) -> Result<DatabaseUrl, Failure> {
        let session = self.session(wish).await?;
        let oid = session.ask_one(recipe::DATABASE).await?.number(0)?;
        let role = role_name(oid, &wish.schema);
        let facts = facts(session, wish, &role, oid).await?;
        // Refuses before a new password is in the file.
        recipe::may_alter(&facts, wish, &role).map_err(Failure::Refused)?;
        let (path, url) = (wish.credentials.clone(), wish.url.clone());
        let make = match renew {
            true => credentials::renew,
            false => credentials::login,
        };
        let login = tokio::task::spawn_blocking(move || make(&path, &url, &role))
            .await
            .map_err(io::Error::other)
            .and_then(|made| made)
            .map_err(|error| {
                Failure::Refused(format!("{}: {error}", wish.credentials.display()))
            })?;
        let password = login.password().map(Secret::expose).unwrap_or_default();
        let verifier = scram_sha_256(password.as_bytes());
        let sql = recipe::statements(&facts, wish, &verifier).map_err(Failure::Refused)?;
        session.ask_within(WORK, &sql).await?;
        let role = login.user();
        if !session.ask_one(&recipe::may_connect(role)).await?.flag(0)? {
            return Err(Failure::Refused(format!(
                "role {role} may not connect to database {0}, and {1} may not grant it: GRANT CONNECT ON DATABASE {0} TO PUBLIC, \
                 or to {1} WITH GRANT OPTION",
                sql::identifier(&facts.database),
                sql::identifier(&facts.admin)
            )));
        }
        let ignored = |(setting, _): &&(&str, String)| *setting == recipe::SUPERUSERS_SETTING;
        if !facts.superuser && wish.settings.iter().any(|setting| ignored(&setting)) {
            let (tenant, admin) = (&wish.tenant, &facts.admin);
            tracing::warn!(%tenant, "temp_file_limit is not set: only a superuser may set it, and [provision] admin_url names {admin}");
        }
        Ok(login)
    }

    /// Closes the database of a tenant to what every role may do by default, once, and notes what stays open.
    async fn guard(&mut self, wish: &RoleWish, login: Option<&DatabaseUrl>) {
        let mut open = Vec::new();
        if !self.guarded.contains(&wish.admin) {
            match self.close(wish, &mut open).await {
                Err(Failure::Server(failure)) => {
                    self.session = None;
                    let reason = failure.reason();
                    open.push(format!("is not closed to other roles: {reason}"));
                }
                Err(Failure::Refused(reason)) => open.push(reason),
                Ok(()) => drop(self.guarded.insert(wish.admin.clone())),
            }
        }
        let known = url_file::read(&wish.credentials).ok();
        if let Some(login) = login.or(known.as_ref())
            && self.asked_for_password.insert(wish.admin.clone())
        {
            for (url, what) in [(login, "every other"), (&wish.admin, "the administrator")] {
                if trusts(url, wish).await {
                    let role = url.user();
                    open.push(format!(
                        "lets role {role} in without its password (pg_hba.conf: trust), so every tenant may log in as {what}: \
                         write scram-sha-256"
                    ));
                }
            }
        }
        let database = wish.admin.dbname();
        let mut notices = self.notices.lock().unwrap_or_else(PoisonError::into_inner);
        for text in open {
            let text = format!("[provision]: database {database} {text}");
            if notices.insert(text.clone()) {
                tracing::warn!("{text}");
            }
        }
    }

    /// Closes functions and databases, and adds to `open` what could not be closed.
    async fn close(&mut self, wish: &RoleWish, open: &mut Vec<String>) -> Result<(), Failure> {
        let exclusive = self.exclusive;
        let session = self.session(wish).await?;
        let names = |rows: Vec<super::session::Row>| {
            let names = rows.iter().map(|row| row.text(0).map(str::to_owned));
            names.collect::<Result<Vec<String>, ProbeFailure>>()
        };
        let functions = names(session.ask(database::OPEN_FUNCTIONS).await?)?;
        session.ask(&database::close_functions(&functions)).await?;
        if exclusive {
            let kept = names(session.ask(&database::existing(&wish.keep)).await?)?;
            for row in session.ask(&database::open_databases(ROLE_PREFIX)).await? {
                let name = row.text(0)?;
                let connected = row.nullable(1).unwrap_or_default().lines();
                let keep = connected.chain(kept.iter().map(String::as_str)).collect();
                let is_tenants = name == wish.admin.dbname();
                let sql = database::close_database(name, &keep, is_tenants);
                session.ask(&sql).await?;
            }
        }
        // Without ownership a REVOKE is only a warning.
        let functions = names(session.ask(database::OPEN_FUNCTIONS).await?)?;
        if !functions.is_empty() {
            open.push(
                "lets every role take advisory locks and make large objects: only a superuser may forbid it".to_owned(),
            );
        }
        if exclusive {
            let left = names(session.ask(&database::open_databases(ROLE_PREFIX)).await?)?;
            if !left.is_empty() {
                let left = left.join(", ");
                open.push(format!(
                    "is exclusive, but every role may still connect to {left}: only the owner or a superuser may forbid it"
                ));
            }
        }
        Ok(())
    }
}

/// The end of an attempt.
enum Failure {
    /// The server or the connection failed.
    Server(ProbeFailure),
    /// The reason for the operator; another attempt would end in the same way.
    Refused(String),
}

impl From<ProbeFailure> for Failure {
    fn from(failure: ProbeFailure) -> Self {
        Self::Server(failure)
    }
}

/// Asks the server for the state of a tenant's role and schema.
async fn facts(
    session: &Session,
    wish: &RoleWish,
    role: &str,
    database_oid: u32,
) -> Result<RoleFacts, ProbeFailure> {
    let query = recipe::facts_query(role, &wish.schema, &wish.earlier);
    let row = session.ask_one(&query).await?;
    let lines = |column| row.nullable(column).unwrap_or_default().lines();
    let mut objects = Vec::new();
    for row in session
        .ask(&recipe::objects_query(role, &wish.schema))
        .await?
    {
        objects.push(ObjectFacts {
            words: row.text(0)?.to_owned(),
            owner: row.text(1)?.to_owned(),
        });
    }
    Ok(RoleFacts {
        admin: row.text(0)?.to_owned(),
        superuser: row.flag(1)?,
        version: row.number(2)?,
        database: row.text(3)?.to_owned(),
        database_oid,
        role_exists: row.flag(4)?,
        role_comment: row.nullable(5).map(str::to_owned),
        role_sessions: row.number(6)?,
        member_of: lines(7).map(str::to_owned).collect(),
        members: lines(8).map(str::to_owned).collect(),
        owner: row.nullable(9).map(str::to_owned),
        earlier_exists: row.flag(10)?,
        earlier_may_use: row.flag(11)?,
        objects,
    })
}

/// Returns the `application_name` of the administrator's sessions.
fn session_name(wish: &RoleWish) -> String {
    format!("{}:.provision", wish.supervisor)
}

/// Returns true when the server lets the role in with a wrong password.
async fn trusts(login: &DatabaseUrl, wish: &RoleWish) -> bool {
    let wrong = Some(Secret::new("not the password"));
    let url = login.clone().with_user(login.user(), wrong);
    let name = session_name(wish);
    Session::open(&url, &name).await.is_ok()
}

/// Returns the databases that `exclusive` would close now, one sentence each, with the roles that keep them. Asks the
/// administrator's server, and changes nothing.
///
/// # Errors
/// When the event loop cannot be made, or the server does not answer.
pub(crate) fn closings(admin: &DatabaseUrl, prefix: &str) -> Result<Vec<String>, String> {
    let runtime = event_loop().map_err(|error| error.to_string())?;
    let work = async {
        let session = Session::open(admin, &format!("{prefix}.supervisor")).await?;
        session.set_own_settings().await?;
        let rows = session.ask(&database::open_databases(ROLE_PREFIX)).await?;
        let sentences = rows.iter().map(|row| {
            let kept: Vec<&str> = row.nullable(1).unwrap_or_default().lines().collect();
            let but = match kept.is_empty() {
                true => String::new(),
                false => format!(" but {}, connected now", kept.join(", ")),
            };
            Ok(format!(
                "[provision] exclusive: database {} is to be closed to every role{but}",
                row.text(0)?
            ))
        });
        sentences.collect::<Result<Vec<String>, ProbeFailure>>()
    };
    let closings = tokio::task::LocalSet::new().block_on(&runtime, work);
    runtime.shutdown_background();
    closings.map_err(|failure| failure.reason().to_owned())
}
