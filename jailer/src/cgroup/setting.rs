//! One `FILE=VALUE` of a cgroup, well formed. `FILE?=VALUE` is left out where the host has no such file or controller.
//!
//! Refuses names that are no file of a controller: with a slash, with `..`, without a controller before the first dot,
//! and the core files (`cgroup.*`), which are the jailer's.

/// Longest value, in bytes.
const MAX_VALUE: usize = 1024;

/// A file of a controller and what is written into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    file: String,
    value: String,
    optional: bool,
}

/// Words that are no setting.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    /// Not `FILE=VALUE`.
    #[error("--cgroup {0:?}: FILE=VALUE is expected")]
    Form(String),
    /// Not a controller's file.
    #[error(
        "--cgroup {0:?}: a controller's file is expected, as in memory.max; no slash, no .., not cgroup.*"
    )]
    File(String),
    /// Not a value.
    #[error("--cgroup {0}: the value must be one line of 1 to {MAX_VALUE} bytes")]
    Value(String),
    /// Given twice.
    #[error("--cgroup {0}: given twice (--cpus sets cpuset.cpus)")]
    Twice(String),
    /// Not a list of CPUs.
    #[error("--cpus {0:?}: CPU numbers and ranges are expected, as in 0,2-3")]
    Cpus(String),
}

impl Setting {
    /// Name of the file in the sandbox's cgroup.
    #[must_use]
    pub fn file(&self) -> &str {
        &self.file
    }

    /// What is written.
    #[must_use]
    pub fn value(&self) -> &str {
        &self.value
    }

    /// Whether it may be left out where the host does not offer it.
    #[must_use]
    pub fn is_optional(&self) -> bool {
        self.optional
    }

    /// Whether both are written to one place: a file, or the line of one device in it.
    fn is_same(&self, other: &Self) -> bool {
        let device = |setting: &Self| {
            let per_device = setting.file == "io.max" || setting.file.starts_with("blkio.throttle.");
            setting.value.split(' ').next().filter(|_| per_device).map(str::to_owned)
        };
        self.file == other.file && device(self) == device(other)
    }

    /// The controller that the file belongs to.
    #[must_use]
    pub fn controller(&self) -> &str {
        self.file.split_once('.').map_or(self.file.as_str(), |(controller, _)| controller)
    }

    fn parse(word: &str) -> Result<Self, SettingError> {
        let (file, value) = word.split_once('=').ok_or_else(|| SettingError::Form(word.to_owned()))?;
        let (file, optional) = file.strip_suffix('?').map_or((file, false), |file| (file, true));
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
        let named = file.split_once('.').is_some_and(|(controller, rest)| {
            !controller.is_empty() && controller != "cgroup" && !rest.is_empty() && !file.contains("..")
        });
        // hugetlb's files carry the page size, as in hugetlb.2MB.max.
        let allowed =
            file.bytes().all(|byte| plain(byte) || (file.starts_with("hugetlb.") && b"KMGB".contains(&byte)));
        if !named || !allowed || file.len() > 64 {
            return Err(SettingError::File(file.to_owned()));
        }
        if value.is_empty() || value.len() > MAX_VALUE || value.bytes().any(|byte| byte.is_ascii_control()) {
            return Err(SettingError::Value(file.to_owned()));
        }
        Ok(Self { file: file.to_owned(), value: value.to_owned(), optional })
    }
}

/// The settings that `--cgroup` and `--cpus` ask for.
pub(crate) fn settings(words: &[String], cpus: Option<String>) -> Result<Vec<Setting>, SettingError> {
    let mut settings: Vec<Setting> = Vec::with_capacity(words.len() + 1);
    if let Some(list) = cpus {
        if !is_cpu_list(&list) {
            return Err(SettingError::Cpus(list));
        }
        settings.push(Setting { file: "cpuset.cpus".to_owned(), value: list, optional: false });
    }
    for word in words {
        let setting = Setting::parse(word)?;
        if settings.iter().any(|other| other.is_same(&setting)) {
            return Err(SettingError::Twice(setting.file));
        }
        settings.push(setting);
    }
    Ok(settings)
}

fn is_cpu_list(list: &str) -> bool {
    let is_cpu = |text: &str| text.len() <= 5 && text.parse::<u16>().is_ok();
    list.len() <= MAX_VALUE
        && list.split(',').all(|part| match part.split_once('-') {
            Some((first, last)) => is_cpu(first) && is_cpu(last),
            None => is_cpu(part),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_has_a_controller() {
        let setting = Setting::parse("memory.max=128M").unwrap();
        assert_eq!((setting.controller(), setting.file(), setting.value()), ("memory", "memory.max", "128M"));
        assert_eq!(Setting::parse("hugetlb.2MB.max=0").unwrap().controller(), "hugetlb");
        assert_eq!(Setting::parse("io.max=8:0 rbps=1").unwrap().value(), "8:0 rbps=1");
        assert!(!setting.is_optional());
        let optional = Setting::parse("memory.swap.max?=0").unwrap();
        assert_eq!(
            (optional.file(), optional.value(), optional.is_optional()),
            ("memory.swap.max", "0", true)
        );
    }

    #[test]
    fn what_is_no_controllers_file_is_refused() {
        for word in [
            "memory=1",
            ".max=1",
            "memory.=1",
            "../x.y=1",
            "cpu/x.max=1",
            "cpu..max=1",
            "cgroup.procs=1",
            "=1",
        ] {
            assert!(matches!(Setting::parse(word), Err(SettingError::File(_))), "{word}");
        }
        assert!(matches!(Setting::parse("cpu.max"), Err(SettingError::Form(_))));
        for word in ["cpu.max=", "cpu.max=1\n2", &format!("cpu.max={}", "1".repeat(MAX_VALUE + 1))] {
            assert!(matches!(Setting::parse(word), Err(SettingError::Value(_))), "{word}");
        }
    }

    #[test]
    fn cpus_are_a_setting_of_the_cpuset() {
        let found = settings(&["pids.max=9".into()], Some("0,2-3".into())).unwrap();
        assert_eq!(found[0], Setting { file: "cpuset.cpus".into(), value: "0,2-3".into(), optional: false });
        assert_eq!(found.len(), 2);
        for list in ["", ",", "0,", "a", "-1", "0-", "0-1-2", "99999", " 0"] {
            assert!(matches!(settings(&[], Some(list.into())), Err(SettingError::Cpus(_))), "{list}");
        }
    }

    #[test]
    fn one_file_is_set_once() {
        let twice = settings(&["cpuset.cpus=1".into()], Some("0".into()));
        assert_eq!(twice, Err(SettingError::Twice("cpuset.cpus".into())));
        let words = ["io.max=8:0 rbps=1", "io.max=8:16 rbps=1", "io.max=8:0 wbps=1"].map(str::to_owned);
        assert_eq!(settings(&words[..2], None).unwrap().len(), 2, "a line for each device");
        assert_eq!(settings(&words, None), Err(SettingError::Twice("io.max".into())));
    }
}
