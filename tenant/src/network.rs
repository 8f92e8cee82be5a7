//! A block of IP addresses, written by an operator.

use std::{fmt, net::IpAddr};

use serde::{Deserialize, Serialize};

use crate::{Invalid, invalid::shown};

/// Addresses that share their first bits: `10.0.0.0/8`, `fd00::/8`, or a single address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Network {
    first: IpAddr,
    bits: u8,
}

impl Network {
    /// Parses `ADDRESS/BITS`, or a single address.
    ///
    /// # Errors
    /// When the text is neither, or when bits after the first BITS are set, because `10.0.0.1/8` is probably a typing
    /// error.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let bad = || {
            Invalid::new(format!("{} is not a network", shown(text)))
                .hint("for example \"10.0.0.0/8\", \"fd00::/8\" or \"127.0.0.1\"")
        };
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let first: IpAddr = address.parse().map_err(|_| bad())?;
        let bits = match bits {
            // `u8::parse` alone would accept a sign.
            Some(bits) if bits.bytes().all(|b| b.is_ascii_digit()) => {
                bits.parse().map_err(|_| bad())?
            }
            Some(_) => return Err(bad()),
            None => width(first),
        };
        if bits > width(first) {
            return Err(bad());
        }
        let network = Self {
            first: masked(first, bits),
            bits,
        };
        if network.first != first {
            return Err(
                Invalid::new(format!("{} begins inside its network", shown(text)))
                    .hint(format!("write \"{network}\"")),
            );
        }
        Ok(network)
    }

    /// Returns true when the block contains the address. An IPv4 address in IPv6 form (`::ffff:10.0.0.1`) counts as
    /// IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.first.is_ipv4() && masked(address, self.bits) == self.first
    }
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// Clears all bits of the address except the first.
fn masked(address: IpAddr, bits: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            IpAddr::V4((v4.to_bits() & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            IpAddr::V6((v6.to_bits() & mask).into())
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.bits)
    }
}

crate::text_conversions::text_conversions!(Network);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_network_holds_the_addresses_that_begin_like_it() {
        let holds = |network: &str, address: &str| {
            Network::parse(network)
                .unwrap()
                .contains(address.parse().unwrap())
        };
        assert!(holds("10.0.0.0/8", "10.255.0.1"));
        assert!(!holds("10.0.0.0/8", "11.0.0.0"));
        assert!(holds("127.0.0.1", "127.0.0.1") && !holds("127.0.0.1", "127.0.0.2"));
        assert!(holds("0.0.0.0/0", "8.8.8.8") && !holds("0.0.0.0/0", "::1"));
        assert!(holds("10.0.0.0/8", "::ffff:10.1.2.3"));
        assert!(holds("fd00::/8", "fdff::1") && !holds("fd00::/8", "fc00::1"));
        assert!(holds("::/0", "2001:db8::1") && holds("::1", "::1"));
    }

    #[test]
    fn what_is_no_network_is_refused_and_a_slip_is_mended() {
        for bad in [
            "",
            "10.0.0.0/33",
            "10.0.0.0/+8",
            "10.0.0.0/",
            "10/8",
            "example.com",
            "::/129",
            "10.0.0.0/8/8",
        ] {
            assert!(Network::parse(bad).is_err(), "{bad}");
        }
        let error = Network::parse("10.1.2.3/8").unwrap_err();
        assert_eq!(error.hint.unwrap(), "write \"10.0.0.0/8\"");
    }

    #[test]
    fn a_network_reads_back_from_its_text() {
        for text in ["10.0.0.0/8", "127.0.0.1/32", "fd00::/8", "::/0", "::1/128"] {
            assert_eq!(Network::parse(text).unwrap().to_string(), text);
        }
    }
}
