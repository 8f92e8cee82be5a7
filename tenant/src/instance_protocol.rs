//! The words that the supervisor and a broker exchange: the JSON of the private socket, and the names of what the broker
//! inherits.
//!
//! Supervisor and broker may have different versions. Fields are therefore added and never renamed, and every added
//! field has a default.

use std::{collections::BTreeSet, fmt};

use serde::{Deserialize, Serialize};

use crate::Secret;

/// The name in `LISTEN_FDNAMES` of the socket on which the broker serves its tenant.
pub const HTTP_SOCKET: &str = "http";
/// The name in `LISTEN_FDNAMES` of the private socket.
pub const PRIVATE_SOCKET: &str = "private";
/// The variable that names the descriptor of the instance's configuration.
pub const CONFIG_FD: &str = "BROKKR_CONFIG_FD";
/// The key of a notification with the number of connections that an ending broker still holds.
pub const HELD_CONNECTIONS: &str = "X_CONNECTIONS";

/// The beginning of the name of every role that a supervisor provisions for a tenant.
pub const ROLE_PREFIX: &str = "brokkr_t_";

/// The phase of an instance. The broker repeats it for a restarted supervisor that missed the notifications.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InstancePhase {
    /// Not ready yet.
    Starting,
    /// The instance was told to end.
    Stopping,
    /// The instance accepts connections. An unknown phase counts as this, because an older broker sends none.
    #[default]
    #[serde(other)]
    Serving,
}

/// The answer to `GET /pool` and `PUT /pool`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolState {
    /// The largest number of connections that the instance may hold.
    pub connections: u32,
    /// The number of connections that it holds.
    pub held: u32,
    /// The number of these that are working.
    #[serde(default)]
    pub working: u32,
    /// The process ids of the server's backends that serve this instance; `None` from an older broker. Other backends
    /// under the tenant's name belong to other processes.
    pub backends: Option<BTreeSet<i32>>,
    /// The phase of the instance.
    #[serde(default)]
    pub phase: InstancePhase,
}

/// The body of `PUT /pool`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetPool {
    /// The largest number of connections that the instance may hold.
    pub connections: u32,
}

/// The reason why a server cannot serve the tenant now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerOutage {
    /// The reason in words.
    pub reason: String,
    /// True when the server answers reads and takes no writes.
    pub read_only: bool,
}

/// The body of `PUT /server`: the supervisor's verdict on the tenant's server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetServer {
    up: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// Older supervisors do not send this field.
    #[serde(skip_serializing_if = "Option::is_none")]
    read_only: Option<bool>,
}

impl From<Result<(), ServerOutage>> for SetServer {
    fn from(verdict: Result<(), ServerOutage>) -> Self {
        let outage = verdict.err();
        Self {
            up: outage.is_none(),
            read_only: outage.as_ref().map(|outage| outage.read_only),
            reason: outage.map(|outage| outage.reason),
        }
    }
}

impl SetServer {
    /// Returns the outage, or `None` when the server is up.
    pub fn outage(self) -> Option<ServerOutage> {
        (!self.up).then(|| ServerOutage {
            reason: self
                .reason
                .unwrap_or_else(|| "the supervisor says the server is down".to_owned()),
            read_only: self.read_only.unwrap_or_default(),
        })
    }
}

/// The body of `PUT /password`: the password with which the instance opens further connections. `Debug` hides it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetPassword {
    password: String,
}

impl SetPassword {
    /// Makes the body of this password.
    pub fn new(password: &Secret) -> Self {
        Self {
            password: password.expose().to_owned(),
        }
    }

    /// Returns the password.
    pub fn into_password(self) -> Secret {
        Secret::new(self.password)
    }
}

impl fmt::Debug for SetPassword {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SetPassword(***)")
    }
}

/// The answer to `GET /maps`: the files that the instance executes and that are no longer on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Maps {
    /// The paths.
    pub deleted: BTreeSet<String>,
}

/// The answer to `GET /isolation`: the layers of the instance's sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Isolation {
    /// Every layer, on or off.
    pub layers: Vec<IsolationLayer>,
    /// Files and folders that the instance needs and its sandbox keeps it from, because they were replaced or emptied
    /// after it had started.
    #[serde(default)]
    pub unreadable: Vec<String>,
}

/// One layer of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IsolationLayer {
    /// The name: `capabilities`, `landlock` or `seccomp`.
    pub name: String,
    /// True when the layer is in force.
    pub on: bool,
    /// The parts that are in force, or the reason why none is.
    pub detail: String,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_verdict_has_the_documented_form_and_an_older_supervisors_is_read() {
        let outage = ServerOutage {
            reason: "no answer".to_owned(),
            read_only: false,
        };
        let down = r#"{"up":false,"reason":"no answer","read_only":false}"#;
        for (verdict, json) in [(Ok(()), r#"{"up":true}"#), (Err(outage.clone()), down)] {
            assert_eq!(
                serde_json::to_string(&SetServer::from(verdict)).unwrap(),
                json
            );
        }
        let older: SetServer =
            serde_json::from_str(r#"{"up":false,"reason":"no answer"}"#).unwrap();
        assert_eq!(older.outage(), Some(outage));
    }

    #[test]
    fn an_older_brokers_pool_counts_as_serving_and_names_no_backends() {
        for phase in ["", r#","phase":"unheard of""#] {
            let json = format!(r#"{{"connections":5,"held":3{phase}}}"#);
            let pool: PoolState = serde_json::from_str(&json).unwrap();
            assert_eq!(
                (pool.held, pool.backends, pool.phase),
                (3, None, InstancePhase::Serving)
            );
        }
    }
}
