//! A shell script in place of the broker that may misbehave first and then executes the real broker.
//!
//! The operator's key `broker = "…"` names the script, so the supervisor is the real program. A file for each tenant
//! beside the script decides its behaviour, so that a bad tenant can run among good tenants.

use super::Host;
use crate::{bin, test_dir};
use std::fs;
use std::path::PathBuf;

/// The folder of the script.
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

    /// Installs the script once more, as a package's upgrade does. Every tenant runs `first` before anything else.
    pub fn install_again(&self, first: &str) {
        // The tenant's name is only in the path of the notification socket, nowhere else in the environment.
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
        test_dir::set_mode(&temporary, 0o755);
        fs::rename(&temporary, self.folder.join("brokkr-broker")).unwrap();
    }

    /// Makes `tenant` run `script` before the real broker, from its next instance on.
    pub fn first(&self, tenant: &str, script: &str) {
        let temporary = self.folder.join(format!(".{tenant}"));
        fs::write(&temporary, format!("{script}\n")).unwrap();
        fs::rename(&temporary, self.folder.join(format!("{tenant}.sh"))).unwrap();
    }

    /// Makes `tenant` a broker that becomes ready and answers nothing, from its next instance on.
    pub fn deaf(&self, tenant: &str) {
        let program = bin::trivial_broker();
        self.first(
            tenant,
            &format!("TRIVIAL=deaf exec {} serve", program.display()),
        );
    }

    /// Makes `tenant` the real broker again, from its next instance on.
    pub fn heal(&self, tenant: &str) {
        fs::remove_file(self.folder.join(format!("{tenant}.sh"))).unwrap();
    }
}
