//! Asks systemd over D-Bus for this unit's current job, because SIGTERM alone does not tell a restart from a stop.

use std::time::Duration;
use zbus::{Connection, OwnedObjectPath, OwnedVariant};

/// The longest time for the whole conversation. Without an answer a stop is assumed.
const PATIENCE: Duration = Duration::from_secs(3);
/// systemd's own socket, for root on a host without a bus.
const PRIVATE: &str = "unix:path=/run/systemd/private";
/// Name and path of systemd's manager object.
const SYSTEMD: &str = "org.freedesktop.systemd1";
const MANAGER: &str = "/org/freedesktop/systemd1";

/// Returns true when systemd is restarting this unit; false also when that is unknown.
pub(crate) async fn is_restart() -> bool {
    match job().await {
        Ok(job) => matches!(job.as_deref(), Some("restart" | "try-restart")),
        Err(problem) => {
            tracing::warn!(
                "systemd cannot be asked whether this is a restart ({problem}): it is taken for a stop"
            );
            false
        }
    }
}

/// Returns the type of this unit's current job, if any: `restart`, `stop`, `start` …
pub(crate) async fn job() -> Result<Option<String>, String> {
    asked(async {
        let (connection, unit) = unit().await?;
        let job = property(&connection, &unit, "Unit", "Job").await?;
        let (id, path): (u32, OwnedObjectPath) = job.try_into()?;
        if id == 0 {
            return Ok(None);
        }
        let job_type = property(&connection, &path, "Job", "JobType").await?;
        Ok(Some(job_type.try_into()?))
    })
    .await
}

/// Returns the number of descriptors that systemd keeps for this unit.
pub(crate) async fn store_max() -> Result<u32, String> {
    asked(async {
        let (connection, unit) = unit().await?;
        let most = property(&connection, &unit, "Service", "FileDescriptorStoreMax").await?;
        most.try_into()
    })
    .await
}

async fn asked<T>(question: impl Future<Output = zbus::Result<T>>) -> Result<T, String> {
    match tokio::time::timeout(PATIENCE, question).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {PATIENCE:?}")),
    }
}

/// Returns the connection and this process's unit.
async fn unit() -> zbus::Result<(Connection, OwnedObjectPath)> {
    let connection = connection().await?;
    let interface = format!("{SYSTEMD}.Manager");
    let us = std::process::id();
    let answer = connection
        .call_method(Some(SYSTEMD), MANAGER, Some(interface), "GetUnitByPID", &us)
        .await?;
    let unit = answer.body().deserialize()?;
    Ok((connection, unit))
}

async fn property(
    connection: &Connection,
    path: &OwnedObjectPath,
    interface: &str,
    name: &str,
) -> zbus::Result<OwnedVariant> {
    let question = (format!("{SYSTEMD}.{interface}"), name);
    let answer = connection
        .call_method(
            Some(SYSTEMD),
            path.as_str(),
            Some("org.freedesktop.DBus.Properties"),
            "Get",
            &question,
        )
        .await?;
    answer.body().deserialize()
}

async fn connection() -> zbus::Result<Connection> {
    match Connection::system().await {
        Ok(connection) => Ok(connection),
        // The bus comes first, because zbus rejects the sender in systemd 252's answers on the private socket.
        Err(error) => {
            let private = zbus::conn::Builder::address(PRIVATE).p2p().build();
            private.await.map_err(|_| error)
        }
    }
}
