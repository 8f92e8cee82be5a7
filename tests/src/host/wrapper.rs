//! A program put in place of the broker: a shell script that misbehaves first, then is the real broker (`exec`).
//!
//! It is the operator's `broker = "…"` key that points at it, so the supervisor is the real one and unaware. What it
//! does is decided by files beside it, one for each tenant, so one bad tenant can live among good ones.

use super::Host;
use crate::{bin, place};
use std::fs;
use std::path::PathBuf;

/// The script, beside the host's other files.
#[derive(Debug)]
pub struct Wrapper {
    folder: PathBuf,
}

impl Wrapper {
    pub(super) fn install(host: &Host) -> Self {
        let folder = host.root().join("wrap");
        fs::create_dir_all(&folder).unwrap();
        let wrapper = Self { folder };
        wrapper.install_again("");
        let script = wrapper.folder.join("brokkr-broker");
        host.set(
            "broker",
            &crate::toml_text::quoted(&script.display().to_string()),
        );
        wrapper
    }

    /// Puts the script in place once more, as a package's upgrade would: `first` is what every tenant does before
    /// anything else.
    pub fn install_again(&self, first: &str) {
        // Which tenant this is, is in the path of the notification socket and nowhere else in the environment.
        let text = format!(
            "#!/bin/sh\n{first}\n\
             tenant=${{NOTIFY_SOCKET##*/}}; tenant=${{tenant%%.*}}\n\
             export BROKKR_REAL={real}\n\
             if [ -e {folder}/$tenant.sh ]; then . {folder}/$tenant.sh; fi\n\
             unset BROKKR_REAL\n\
             exec {real} \"$@\"\n",
            real = bin::broker().display(),
            folder = self.folder.display()
        );
        let temporary = self.folder.join(".new");
        fs::write(&temporary, text).unwrap();
        place::set_mode(&temporary, 0o755);
        fs::rename(&temporary, self.folder.join("brokkr-broker")).unwrap();
    }

    /// What `tenant` does before it is the real broker, from its next instance on.
    pub fn first(&self, tenant: &str, script: &str) {
        let temporary = self.folder.join(format!(".{tenant}"));
        fs::write(&temporary, format!("{script}\n")).unwrap();
        fs::rename(&temporary, self.folder.join(format!("{tenant}.sh"))).unwrap();
    }

    /// `tenant` is a broker that becomes ready and answers nothing, from its next instance on.
    pub fn deaf(&self, tenant: &str) {
        let program = bin::trivial_broker();
        self.first(
            tenant,
            &format!("TRIVIAL=deaf exec {} serve", program.display()),
        );
    }

    /// `tenant` behaves again, from its next instance on.
    pub fn heal(&self, tenant: &str) {
        fs::remove_file(self.folder.join(format!("{tenant}.sh"))).unwrap();
    }
}
