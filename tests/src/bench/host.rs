//! The one setting of the host that changes what a guest's memory costs: transparent huge pages.
//!
//! Owns the setting while it lives and puts the former one back. Refuses a kernel without the setting. Invariant: peers
//! are measured under Debian's own default (`always`); they do not ask for huge pages with madvise, so another setting
//! would have them pay for 4 KiB faults that their users do not see.

use std::fs;
use std::io;
use std::path::Path;

const ENABLED: &str = "/sys/kernel/mm/transparent_hugepage/enabled";

/// Transparent huge pages for all memory, until dropped.
pub struct HugePagesAlways {
    former: String,
}

impl HugePagesAlways {
    /// Switches them on (`Documentation/admin-guide/mm/transhuge.rst`).
    ///
    /// # Errors
    /// This is not root, or the kernel has none.
    pub fn set() -> io::Result<Self> {
        let text = fs::read_to_string(ENABLED)?;
        let former =
            chosen(&text).ok_or_else(|| io::Error::other(format!("{ENABLED}: '{}'", text.trim())))?;
        let former = former.to_owned();
        fs::write(Path::new(ENABLED), "always")?;
        Ok(Self { former })
    }
}

impl Drop for HugePagesAlways {
    fn drop(&mut self) {
        drop(fs::write(ENABLED, &self.former));
    }
}

/// `always [madvise] never` to `madvise`.
fn chosen(text: &str) -> Option<&str> {
    Some(text.split_once('[')?.1.split_once(']')?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chosen_word_stands_in_brackets() {
        assert_eq!(chosen("always [madvise] never\n"), Some("madvise"));
        assert_eq!(chosen("always"), None);
    }
}
