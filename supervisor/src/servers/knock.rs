//! Knocks at an address to find out whether a server answers there, without a role, a database or a password.
//!
//! A request for TLS is the only question that every PostgreSQL server and pooler answers before the login, also while
//! it starts, stops or is full. So the answer holds for every URL of the address. The result of a login does not: a
//! login may hang or fail for reasons of its own.

use super::session::{ProbeFailure, within};
use brokkr_tenant::Host;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

/// The protocol's `SSLRequest`: length and code.
const REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// Sends the request and waits for one byte.
pub(super) async fn knock(host: &Host, port: u16, deadline: Duration) -> Result<(), ProbeFailure> {
    let shown = host.server(port);
    let answer = async {
        let asked = match host {
            Host::Tcp(name) => ask(TcpStream::connect((name.as_str(), port)).await).await,
            Host::Unix(folder) => {
                ask(UnixStream::connect(folder.join(format!(".s.PGSQL.{port}"))).await).await
            }
        };
        asked.map_err(|error| ProbeFailure::of_address(format!("{shown}: {error}")))
    };
    within(&format!("{shown}: an answer"), deadline, answer)
        .await
        .map_err(|failure| ProbeFailure::of_address(failure.reason().to_owned()))
}

async fn ask<S: AsyncRead + AsyncWrite + Unpin>(stream: io::Result<S>) -> io::Result<()> {
    let mut stream = stream?;
    stream.write_all(&REQUEST).await?;
    let mut answer = [0];
    stream.read_exact(&mut answer).await?;
    Ok(())
}
