//! The address by which failed authentications are counted.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The address of a connection's peer. `X-Forwarded-For` is never read, because any client can send it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClientAddress {
    /// This host: loopback or a Unix socket. All clients behind a proxy on this host have this address.
    Local,
    /// An IPv4 address, also one written as IPv6.
    V4(Ipv4Addr),
    /// The first 64 bits of an IPv6 address, because one customer usually has all addresses that begin with them.
    V6Network(u64),
}

impl ClientAddress {
    /// Returns the address of a peer; `None` is a Unix socket's.
    pub fn of(peer: Option<IpAddr>) -> Self {
        match peer.map(|ip| ip.to_canonical()) {
            None => Self::Local,
            Some(ip) if ip.is_loopback() => Self::Local,
            Some(IpAddr::V4(ip)) => Self::V4(ip),
            Some(IpAddr::V6(ip)) => Self::V6Network((ip.to_bits() >> 64) as u64),
        }
    }
}

impl fmt::Display for ClientAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str("this host"),
            Self::V4(ip) => ip.fmt(f),
            Self::V6Network(bits) => {
                write!(f, "{}/64", Ipv6Addr::from_bits(u128::from(*bits) << 64))
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_network_is_one_client_and_this_host_is_one_however_it_connects() {
        let of = |text: &str| ClientAddress::of(Some(text.parse().unwrap()));
        assert_eq!(of("2001:db8:0:1::1"), of("2001:db8:0:1:ffff::2"));
        assert_ne!(of("2001:db8:0:1::1"), of("2001:db8:0:2::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
        for local in ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(of(local), ClientAddress::of(None), "{local}");
        }
        assert_eq!(of("2001:db8:0:1::9").to_string(), "2001:db8:0:1::/64");
    }
}
