use super::*;

fn parsed(words: &[&str]) -> Result<Parsed, String> {
    parse(words.iter().map(OsString::from).collect())
}

fn wrong(words: &[&str]) -> String {
    match parsed(words) {
        Err(line) => line,
        Ok(Parsed::Print(text)) => panic!("help: {text}"),
        Ok(Parsed::Do(command, _)) => panic!("{command:?}"),
    }
}

fn options(words: &[&str]) -> (crate::Options, Telling) {
    let Ok(Parsed::Do(Subcommand::Run(run), rest)) = parsed(words) else { panic!("{words:?}") };
    let telling = run.telling();
    (run.into_options(rest.unwrap_or_default()).unwrap(), telling)
}

#[test]
fn every_option_of_run_arrives() {
    let line = "run --rootfs=r --kernel k --initrd i --vcpus 2 --memory=1G --memory-max 2G --env A=1 --env B=2 --workdir /w --user u \
                --timeout 30s --boot-timeout=5s --hugepages 2M --prefault --pin 0,1 -it --console --json --timings \
                --drive f:/d:rw --pmem p:/p --volume h:/v --config c --vsock v --entropy --pci --strict \
                --limit cpu.max=50% --limit=pids.max=64 --id one -- sh -c x";
    let words: Vec<&str> = line.split_whitespace().collect();
    let (options, telling) = options(&words);
    assert_eq!((options.memory_mib, options.memory_max_mib), (Some(1024), Some(2048)));
    assert_eq!(options.env, ["A=1", "B=2"]);
    assert_eq!(options.timeout, Some(Duration::from_secs(30)));
    assert_eq!(options.boot_timeout, Duration::from_secs(5));
    assert_eq!(options.pin, [0, 1]);
    assert!(options.hugepages && options.prefault && options.stdin && options.terminal && options.console);
    assert!(options.entropy && options.strict && options.pci);
    let limits: Vec<String> = options.limits.iter().map(ToString::to_string).collect();
    assert_eq!(limits, ["cpu.max=50000 100000", "pids.max=64"]);
    assert!(options.drives[0].writable);
    assert_eq!(options.pmem[0].target, "/p");
    assert!(!options.volumes[0].writable);
    assert_eq!(options.id.as_deref(), Some("one"));
    assert_eq!(options.command, ["sh", "-c", "x"]);
    assert_eq!(telling, Telling { json: true, timings: true });
}

#[test]
fn usage_errors_are_one_line_that_names_the_thing() {
    for (words, parts) in [
        (&["frobnicate"][..], &["frobnicate", "husk --help"][..]),
        (&["run", "--frobnicate", "--", "x"], &["--frobnicate", "husk run --help"]),
        (&["run", "--memory", "lots", "--", "x"], &["--memory", "lots", "128M"]),
        (&["run", "--vcpus=two", "--", "x"], &["--vcpus", "two"]),
        (&["run", "--hugepages", "3M", "--", "x"], &["--hugepages", "3M", "2M"]),
        (&["run", "--pin", "0,x", "--", "x"], &["--pin", "0,x"]),
        (&["run", "echo", "hi"], &["echo", "after --"]),
        (&["kill"], &["id"]),
        (&["run", "--limit", "cpu.max=5x", "--", "x"], &["--limit", "cpu.max", "5x", "50%"]),
        (&["run", "--limit", "cpu.quota=5", "--", "x"], &["cpu.quota", "cpu.max, cpu.weight"]),
        (&["kill", "--signal", "STOP", "x"], &["SIGSTOP", "TERM"]),
        (&[], &["no subcommand", "run"]),
    ] {
        let line = wrong(words);
        assert!(!line.contains('\n'), "{line}");
        for part in parts {
            assert!(line.contains(part), "{words:?} does not say {part:?}: {line}");
        }
    }
}

#[test]
fn help_is_no_error_and_names_options_and_statuses() {
    let Ok(Parsed::Print(text)) = parsed(&["run", "--help"]) else { panic!() };
    for part in
        ["--rootfs", "--boot-timeout", "128M", "10s", "124", "125", "126", "127", "husk run -- echo hi"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(matches!(parsed(&["--help"]), Ok(Parsed::Print(_))));
}

#[test]
fn id_and_name_are_one() {
    let (one, _) = options(&["run", "--name", "x", "--", "true"]);
    assert_eq!(one.id.as_deref(), Some("x"));
    let Ok(Parsed::Do(Subcommand::Run(run), _)) = parsed(&["run", "--id", "a", "--name", "b"]) else {
        panic!()
    };
    assert!(run.into_options(Vec::new()).unwrap_err().contains("--name b"));
}

#[test]
fn the_table_is_aligned() {
    let record = |id: &str, command: &str| Record {
        id: id.into(),
        pid: 7,
        uid: 1,
        started_ms: 1000,
        vcpus: 2,
        memory_mib: 160,
        booted_mib: 128,
        command: vec![command.into(), "1000\x1b".into()],
        drives: Vec::new(),
        cgroup: None,
        vsock: None,
        limits: vec!["pids.max=9".into()],
    };
    let text = table(&[record("abc", "sleep"), record("a-very-long-name-of-one", "x")], 66_000);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 3);
    assert!(
        lines[1].contains("65s") && lines[1].contains("160M") && lines[1].ends_with("sleep 1000?"),
        "{text}"
    );
    assert_eq!(lines[0].find("COMMAND"), lines[2].find("x 1000"));
}
