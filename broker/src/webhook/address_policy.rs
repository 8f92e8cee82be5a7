//! The policy of webhook targets.
//!
//! The tenant chooses a subscription's URL, but the network around the broker is the operator's. So only public
//! addresses are reachable, and those that `webhooks.allowed_networks` names. The policy judges the address of the
//! connection, never a name. An address that carries another address inside (IPv4 in IPv6, in any translation) is
//! judged by the inner address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use brokkr_tenant::{Network, WebhooksConfig};

/// The targets that the operator allows.
#[derive(Clone, Debug, Default)]
pub struct AddressPolicy {
    networks: Vec<Network>,
    ports: Vec<u16>,
}

impl AddressPolicy {
    /// Returns the configured policy.
    pub fn new(config: &WebhooksConfig) -> Self {
        Self {
            networks: config.allowed_networks.clone(),
            ports: config.allowed_ports.clone(),
        }
    }

    /// Returns true when the port may be reached.
    pub fn allows_port(&self, port: u16) -> bool {
        self.ports.is_empty() || self.ports.contains(&port)
    }

    /// Returns true when the address may be reached.
    pub fn allows(&self, address: IpAddr) -> bool {
        if self
            .networks
            .iter()
            .any(|network| network.contains(address))
        {
            return true;
        }
        match address {
            IpAddr::V4(v4) => is_public(v4),
            IpAddr::V6(v6) => match translated(v6) {
                Some(v4) => self.allows(IpAddr::V4(v4)),
                None => is_public_v6(v6) && isatap(v6).is_none_or(|v4| self.allows(IpAddr::V4(v4))),
            },
        }
    }
}

/// Returns true for addresses that are globally reachable by IANA's special-purpose registry, and not multicast.
fn is_public(v4: Ipv4Addr) -> bool {
    let [a, b, c, _] = v4.octets();
    !matches!(
        (a, b, c),
        (0 | 10 | 127, _, _)            // this network, private, loopback
            | (100, 64..=127, _)        // shared by carriers
            | (169, 254, _)             // link-local, cloud metadata among it
            | (172, 16..=31, _)         // private
            | (192, 0, 0 | 2)           // protocol assignments, documentation
            | (192, 88, 99)             // 6to4 relays
            | (192, 168, _)             // private
            | (198, 18..=19, _)         // benchmarks
            | (198, 51, 100)            // documentation
            | (203, 0, 113)             // documentation
            | (224..=255, _, _) // multicast, reserved, broadcast
    )
}

/// Returns true for addresses in the allocated unicast block (2000::/3) without a special purpose.
fn is_public_v6(v6: Ipv6Addr) -> bool {
    match v6.segments() {
        // Protocol assignments, with Teredo (2001::/32) and benchmarks (2001:2::/48).
        [0x2001, second, ..] if second < 0x0200 => false,
        // Documentation.
        [0x2001, 0x0db8, ..] => false,
        [0x3fff, second, ..] if second < 0x1000 => false,
        // `translated` has already judged allowed translations by their IPv4 address.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

/// Returns the IPv4 address that this address maps or translates.
fn translated(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    match v6.segments() {
        // ::ffff:a.b.c.d, mapped; ::ffff:0:a.b.c.d, translated
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0, 0, 0, 0, 0xffff, 0, high, low] => {
            Some(joined(high, low))
        }
        // 64:ff9b::a.b.c.d, NAT64
        [0x0064, 0xff9b, 0, 0, 0, 0, high, low] => Some(joined(high, low)),
        // 2002:a.b.c.d::, 6to4
        [0x2002, high, low, ..] => Some(joined(high, low)),
        _ => None,
    }
}

/// Returns the IPv4 address of an ISATAP host (`…:0:5efe:a.b.c.d`, in any network).
fn isatap(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    match v6.segments() {
        [_, _, _, _, 0 | 0x0200, 0x5efe, high, low] => Some(joined(high, low)),
        _ => None,
    }
}

fn joined(high: u16, low: u16) -> Ipv4Addr {
    let [a, b] = high.to_be_bytes();
    let [c, d] = low.to_be_bytes();
    Ipv4Addr::new(a, b, c, d)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn policy(networks: &[&str]) -> AddressPolicy {
        AddressPolicy {
            networks: networks
                .iter()
                .map(|text| Network::parse(text).unwrap())
                .collect(),
            ports: Vec::new(),
        }
    }

    fn allowed(policy: &AddressPolicy, address: &str) -> bool {
        policy.allows(address.parse().unwrap())
    }

    #[test]
    fn only_public_addresses_are_reached_unasked() {
        for bad in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.7",
            "203.0.113.7",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::7f00:1",
            "fc00::1",
            "fdff::1",
            "fe80::1",
            "fe80::5efe:808:808",
            "fec0::1",
            "ff02::1",
            "100::1",
            "64:ff9b:1::a00:1",
            "2001::1",
            "2001:0:4136:e378:8000:63bf:3fff:fdd2",
            "2001:2::1",
            "2001:db8::1",
            "3fff::1",
            "5f00::1",
            "4000::1",
        ] {
            assert!(!allowed(&AddressPolicy::default(), bad), "{bad}");
        }
        for good in [
            "8.8.8.8",
            "100.63.255.255",
            "100.128.0.1",
            "172.15.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "198.17.0.1",
            "198.20.0.1",
            "223.255.255.255",
            "2606:4700::1",
            "2001:4860:4860::8888",
            "2a00::1",
        ] {
            assert!(allowed(&AddressPolicy::default(), good), "{good}");
        }
    }

    #[test]
    fn an_address_inside_another_counts() {
        let forms = |v4: &str| {
            let [a, b, c, d] = v4.parse::<Ipv4Addr>().unwrap().octets();
            let hex = format!("{a:02x}{b:02x}:{c:02x}{d:02x}");
            [
                format!("::ffff:{v4}"),
                format!("::ffff:0:{v4}"),
                format!("64:ff9b::{v4}"),
                format!("2002:{hex}::1"),
                format!("2606:4700::5efe:{hex}"),
                format!("2606:4700::200:5efe:{hex}"),
            ]
        };
        for v4 in ["127.0.0.1", "10.1.2.3", "169.254.169.254", "100.64.0.1"] {
            for form in forms(v4) {
                assert!(!allowed(&AddressPolicy::default(), &form), "{form}");
            }
        }
        for form in forms("8.8.8.8") {
            assert!(allowed(&AddressPolicy::default(), &form), "{form}");
        }
        let inside = policy(&["10.0.0.0/8"]);
        for form in forms("10.1.2.3") {
            assert!(allowed(&inside, &form), "{form}");
        }
    }

    #[test]
    fn the_operator_opens_what_they_name_and_nothing_else() {
        let policy = policy(&["127.0.0.1/32", "fd00::/8"]);
        assert!(allowed(&policy, "127.0.0.1") && !allowed(&policy, "127.0.0.2"));
        assert!(allowed(&policy, "fd12::1") && !allowed(&policy, "::1"));
        assert!(allowed(&policy, "8.8.8.8"), "what is public stays so");
    }

    #[test]
    fn ports_are_any_unless_some_are_named() {
        assert!(AddressPolicy::default().allows_port(1));
        let policy = AddressPolicy {
            ports: vec![443],
            ..AddressPolicy::default()
        };
        assert!(policy.allows_port(443) && !policy.allows_port(80));
    }
}
