use super::*;

#[test]
fn values_are_read_in_the_words_of_people_and_of_the_kernel() {
    for (word, text) in [
        ("cpu.max=50%", "cpu.max=50000 100000"),
        ("cpu.max=12.5%", "cpu.max=12500 100000"),
        ("cpu.max=1.5", "cpu.max=150000 100000"),
        ("cpu.max=2", "cpu.max=200000 100000"),
        ("cpu.max=10%/10ms", "cpu.max=1000 10000"),
        ("cpu.max=max", "cpu.max=max 100000"),
        ("cpu.max=max/1s", "cpu.max=max 1000000"),
        ("cpu.max=30000 50000", "cpu.max=30000 50000"),
        ("cpu.weight=1", "cpu.weight=1"),
        ("cpuset.cpus=0,2-3", "cpuset.cpus=0,2-3"),
        ("memory.max=64M", "memory.max=67108864"),
        ("memory.high=max", "memory.high=max"),
        ("memory.min=0", "memory.min=0"),
        ("memory.swap.max=4096", "memory.swap.max=4096"),
        ("pids.max=64", "pids.max=64"),
        ("io.max=data:rbps=1M,riops=max", "io.max=data:rbps=1048576,riops=max"),
        ("io.max=/srv/a:b:wbps=1K", "io.max=/srv/a:b:wbps=1024"),
        ("io.max=8:16:wiops=100", "io.max=8:16:wiops=100"),
        ("hugetlb.2MB.max=1G", "hugetlb.2MB.max=1073741824"),
    ] {
        let limit: Limit = word.parse().unwrap();
        assert_eq!(limit.to_string(), text, "{word}");
        // As it is kept and told: the same again.
        assert_eq!(limit.to_string().parse::<Limit>().unwrap(), limit);
    }
}

#[test]
fn what_is_no_limit_is_named_with_what_is_allowed() {
    for word in [
        "cpu.max=0",
        "cpu.max=0%",
        "cpu.max=0.5%",
        "cpu.max=9000",
        "cpu.max=-1",
        "cpu.max=5x",
        "cpu.max=",
        "cpu.max=.5",
        "cpu.max=50%/2s",
        "cpu.max=50%/10us",
        "cpu.max=50%/",
        "cpu.max=50%/20",
        "cpu.max=99999999999999999999",
        "cpu.max=1000 1000 1000",
        "cpu.weight=0",
        "cpu.weight=10001",
        "cpu.weight=max",
        "cpuset.cpus=",
        "cpuset.cpus=3-1",
        "cpuset.mems=a",
        "memory.max=1M",
        "memory.max=0",
        "memory.max=1048577G",
        "memory.max=18446744073709551615G",
        "memory.high=x",
        "memory.min=-1",
        "pids.max=0",
        "pids.max=4194305",
        "pids.max=1.5",
        "io.max=rbps=1M",
        "io.max=:rbps=1M",
        "io.max=data:",
        "io.max=data:rbps=0",
        "io.max=data:rbps=1M,rbps=2M",
        "io.max=data:speed=1M",
        "io.weight=0",
        "hugetlb.2MB.max=x",
    ] {
        let (name, value) = word.split_once('=').unwrap();
        let error = word.parse::<Limit>().unwrap_err().to_string();
        assert!(error.starts_with(&format!("{name} {value:?} is not allowed; ")), "{error}");
    }
    assert_eq!("pids".parse::<Limit>(), Err(LimitError::Form("pids".into())));
    let error = "cpu.shares=2".parse::<Limit>().unwrap_err().to_string();
    assert!(error.starts_with("\"cpu.shares\" is no limit; cpu.max, cpu.weight, cpuset.cpus,"), "{error}");
}

#[test]
fn the_cpuset_has_the_cpus_of_pinned_vcpus() {
    assert_eq!(Limits::of_pins(&[3, 1, 3]).texts(), ["cpuset.cpus=1,3"]);
    assert_eq!(Limits::of_pins(&[]), Limits::default());
    let asked = |word: &str| Limits::once([word.parse().unwrap()]).unwrap();
    assert_eq!(asked("cpuset.cpus=0-3").check_pins(&[3, 1]), Ok(()));
    assert_eq!(asked("pids.max=3").check_pins(&[3, 1]), Ok(()));
    let error = asked("cpuset.cpus=0,2-3").check_pins(&[3, 1]).unwrap_err().to_string();
    assert!(
        error.starts_with("cpuset.cpus \"0,2-3\" is not allowed; a list with CPU 1, to which"),
        "{error}"
    );
}

#[test]
fn an_option_stands_over_the_configuration_and_each_once() {
    let limits = |words: &[&str]| Limits::once(words.iter().map(|word| word.parse().unwrap()));
    let raw = r#"{"pids.max": 9, "io.max": ["data:rbps=1M,wbps=2M"], "memory.low": "1M"}"#;
    let configured = Limits::of(&serde_json::from_str(raw).unwrap()).unwrap();
    let options = limits(&["pids.max=7", "io.max=data:wbps=max", "io.max=x:riops=5"]).unwrap();
    let text: Vec<_> = configured.under(&options).iter().map(ToString::to_string).collect();
    let expected =
        ["memory.low=1048576", "pids.max=7", "io.max=data:rbps=1048576,wbps=max", "io.max=x:riops=5"];
    assert_eq!(text, expected);
    let twice = limits(&["pids.max=7", "pids.max=8"]).unwrap_err().to_string();
    assert_eq!(twice, "pids.max=8 is given twice");
    let wrong = Limits::of(&serde_json::from_str(r#"{"cpu.weight": 0}"#).unwrap()).unwrap_err().to_string();
    assert_eq!(wrong, "cpu.weight \"0\" is not allowed; a whole number from 1 to 10000 is");
}
