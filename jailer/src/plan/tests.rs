use super::*;

fn plan(more: &[&str]) -> Plan {
    let least = ["--id", "x", "--uid", "5", "--gid", "6", "--exec-file", "/opt/prog"];
    planned(&[&least[..], more].concat(), ROOT)
}

const ROOT: Caller = Caller { uid: 0, gid: 0 };
const SOMEBODY: Caller = Caller { uid: 1000, gid: 100 };

fn planned(words: &[&str], caller: Caller) -> Plan {
    Plan::from(&Args::parse(words.iter().map(OsString::from), caller).unwrap())
}

fn place(plan: &Plan, wanted: impl Fn(&Step) -> bool) -> usize {
    plan.steps().iter().position(wanted).unwrap()
}

fn names(plan: &Plan) -> Vec<String> {
    let name = |step: &Step| format!("{step:?}").split(['(', ' ']).next().unwrap().to_owned();
    plan.steps().iter().map(name).collect()
}

const INSIDE: [&str; 18] = [
    "Clone",
    "EnterCgroups",
    "MapUser",
    "CgroupNamespace",
    "CoreScheduling",
    "Hostname",
    "PrivateMounts",
    "EmptyRoot",
    "NewSession",
    "ResetSignals",
    "Umask",
    "KeepDescriptors",
    "Limit",
    "Limit",
    "DropBoundingSet",
    "DropCapabilities",
    "NoNewPrivileges",
    "Undumpable",
];

#[test]
fn the_order_is_this() {
    let before = ["OpenProgram", "OpenNull", "MakeCgroups", "RaiseLimit", "RaiseLimit", "BecomeUser"];
    let expected = [&before[..], &INSIDE, &["DieWithParent", "Execute"]].concat();
    assert_eq!(names(&plan(&[])), expected);
    assert_eq!(
        names(&plan(&["--chroot-base-dir", "/x"]))[3],
        "MakeJail",
        "a directory is made for whoever names one"
    );
}

#[test]
fn the_pool_is_entered_with_all_privileges_and_everything_of_the_host_open() {
    let at_pool = |plan: &Plan| place(plan, |step| matches!(step, Step::EnterPool { .. }));
    let root = plan(&["--pool", "/run/husk/ns"]);
    let jailed = plan(&["--pool", "/run/husk/ns", "--chroot-base-dir", "/x"]);
    assert!(place(&jailed, |step| matches!(step, Step::MakeJail { .. })) < at_pool(&jailed));
    let names = names(&root);
    let before =
        ["OpenProgram", "OpenNull", "MakeCgroups", "EnterPool", "RaiseLimit", "RaiseLimit", "BecomeUser"];
    assert_eq!(names[..before.len()], before);
    assert_eq!(names[before.len()..], names_of_the_rest(&plan(&[])));
    let joined = plan(&["--pool", "/run/husk/ns", "--netns", "/run/netns/x"]);
    assert!(place(&joined, |step| *step == Step::JoinNetns) < at_pool(&joined));
    let asks = |plan: &Plan| match &plan.steps()[at_pool(plan)] {
        Step::EnterPool { network, .. } => *network,
        _ => unreachable!(),
    };
    assert!(asks(&root) && !asks(&joined), "one network is enough");
    let rootless = planned(&["--id", "x", "--exec-file", "/opt/prog", "--pool", "/run/user/1/ns"], SOMEBODY);
    assert!(at_pool(&rootless) < place(&rootless, |step| matches!(step, Step::Clone { .. })));
}

#[test]
fn what_root_takes_of_the_host_is_taken_before_the_pool_is_entered() {
    let volume = ["--id", "x", "--exec-file", "/opt/fs", "--volume-fd", "5", "--volume-socket-fd", "6"];
    let network =
        ["--id", "x", "--exec-file", "/opt/p", "--uid", "5", "--gid", "6", "--network-socket-fd", "6"];
    for (words, take, network) in
        [(&volume[..], Step::TakeVolume { writable: false }, true), (&network, Step::TakeSystem, false)]
    {
        let with = planned(&[words, &["--pool", "/run/husk/ns"]].concat(), ROOT);
        let pool = Step::EnterPool { path: "/run/husk/ns".into(), caller: ROOT, network, proc: true };
        let taken = place(&with, |step| *step == take);
        assert_eq!((&with.steps()[taken + 1], names(&with)[taken + 2].as_str()), (&pool, "Clone"));
        let without = planned(words, ROOT);
        let mut steps = with.steps().to_vec();
        steps.remove(taken + 1);
        assert_eq!(steps, without.steps(), "the pool adds a step and changes none");
    }
    // Without root a mount can be copied only where the cell's user is root, and the host's table is his then.
    let rootless = planned(&volume, SOMEBODY);
    let private = place(&rootless, |step| *step == Step::PrivateMounts);
    assert_eq!(place(&rootless, |step| *step == Step::TakeVolume { writable: false }), private + 1);
}

fn names_of_the_rest(plan: &Plan) -> Vec<String> {
    let user = place(plan, |step| matches!(step, Step::BecomeUser { .. }));
    names(plan).split_off(user + 1)
}

#[test]
fn without_root_the_cell_is_the_same_and_the_user_the_caller() {
    let rootless = planned(&["--id", "x", "--exec-file", "/opt/prog"], SOMEBODY);
    let expected = [&["OpenProgram", "OpenNull", "MakeCgroups"], &INSIDE[..], &["DieWithParent", "Execute"]];
    assert_eq!(names(&rootless), expected.concat());
    assert!(rootless.steps().contains(&Step::MapUser { inside: SOMEBODY, outside: SOMEBODY }));
    assert!(rootless.steps().contains(&Step::Clone { user: true, net: true, detached: false }));
}

#[test]
fn privileges_are_used_before_they_are_given_up() {
    let plan = plan(&["--netns", "/run/netns/x", "--resource-limit", "nproc=9", "--cpus", "0"]);
    let dropped = place(&plan, |step| *step == Step::DropBoundingSet);
    for (at, step) in plan.steps().iter().enumerate() {
        let gives_up_or_needs_nothing = matches!(
            step,
            Step::DropBoundingSet
                | Step::DropCapabilities
                | Step::NoNewPrivileges
                | Step::Undumpable
                | Step::DieWithParent
                | Step::Execute(_)
        );
        assert_eq!(at < dropped, !gives_up_or_needs_nothing, "{step:?}");
    }
    let user = place(&plan, |step| matches!(step, Step::BecomeUser { .. }));
    let cloned = place(&plan, |step| matches!(step, Step::Clone { .. }));
    assert!(user < cloned, "the user namespace is the user's, who maps himself");
    assert!(place(&plan, |step| *step == Step::JoinNetns) < cloned, "it takes a privilege outside of it");
    assert!(place(&plan, |step| matches!(step, Step::RaiseLimit(_))) < user);
    assert!(place(&plan, |step| *step == Step::DropCapabilities) > dropped, "dropping takes CAP_SETPCAP");
    let dies = place(&plan, |step| *step == Step::DieWithParent);
    assert!(dies > place(&plan, |step| *step == Step::DropCapabilities), "a change of them clears it");
    assert!(matches!(plan.steps().last(), Some(Step::Execute(_))));
}

#[test]
fn everything_from_the_host_is_opened_before_the_root_is_swapped() {
    let plan = plan(&["--netns", "/run/netns/x"]);
    let root = place(&plan, |step| matches!(step, Step::EmptyRoot));
    for wanted in
        [Step::OpenNull, Step::OpenNetns("/run/netns/x".into()), Step::PrivateMounts, Step::JoinNetns]
    {
        assert!(place(&plan, |step| *step == wanted) < root, "{wanted:?}");
    }
}

#[test]
fn a_given_network_namespace_is_joined_and_none_made() {
    let plan = plan(&["--netns", "/run/netns/x"]);
    assert!(plan.steps().contains(&Step::Clone { user: true, net: false, detached: false }));
}

#[test]
fn a_daemon_outlives_its_parent() {
    let plan = plan(&["--daemonize"]);
    assert!(plan.steps().contains(&Step::Clone { user: true, net: true, detached: true }));
    assert!(!plan.steps().contains(&Step::DieWithParent));
}

#[test]
fn a_volumes_cell_makes_nothing_and_keeps_little() {
    let words = "--id x --exec-file /opt/fs --volume-fd 5 --volume-socket-fd 6 --volume-writable";
    let words: Vec<&str> = words.split(' ').collect();
    let plan = planned(&words, ROOT);
    let made = |step: &Step| matches!(step, Step::MakeCgroups(_) | Step::MakeJail { .. });
    assert!(!plan.steps().iter().any(made));
    let root = place(&plan, |step| *step == Step::RootOfParts);
    let cloned = place(&plan, |step| matches!(step, Step::Clone { user: false, net: true, detached: false }));
    let entered = place(&plan, |step| matches!(step, Step::EnterVolume(_)));
    assert!(entered < cloned && cloned < root);
    let user = place(&plan, |step| matches!(step, Step::BecomeUser { uid: 0, gid: 0 }));
    let kept = place(&plan, |step| *step == Step::KeepServingCapabilities { writable: true });
    assert!(root < user && user < kept, "the root and the groups take capabilities that are given up");
    let strict = [Step::NoNewPrivileges, Step::Undumpable, Step::DieWithParent];
    assert!(strict.iter().all(|step| place(&plan, |other| other == step) > kept));
    let rootless = planned(&words, SOMEBODY);
    let inside = Caller { uid: 0, gid: 0 };
    assert!(rootless.steps().contains(&Step::MapUser { inside, outside: SOMEBODY }));
    assert!(rootless.steps().contains(&Step::Clone { user: true, net: true, detached: false }));
    assert!(!rootless.steps().iter().any(|step| matches!(step, Step::BecomeUser { .. })));
}

#[test]
fn a_networks_cell_is_in_the_hosts_network_and_keeps_no_privilege() {
    let words = ["--id", "x", "--exec-file", "/opt/prog", "--network-socket-fd", "6", "--", "--quiet"];
    let users = ["--uid", "5", "--gid", "6"];
    for (plan, rootless) in
        [(planned(&[&users[..], &words].concat(), ROOT), false), (planned(&words, SOMEBODY), true)]
    {
        let made =
            |step: &Step| matches!(step, Step::MakeCgroups(_) | Step::MakeJail { .. } | Step::JoinNetns);
        assert!(!plan.steps().iter().any(made));
        let order: Vec<usize> = [
            Some(Step::TakeNetworkSocket(6)),
            Some(Step::Clone { user: rootless, net: false, detached: false }),
            rootless.then_some(Step::MapUser { inside: SOMEBODY, outside: SOMEBODY }),
            Some(Step::CgroupNamespace),
            Some(Step::RootOfParts),
            Some(Step::KeepDescriptors),
            Some(Step::SpeakOnStandardError),
            Some(Step::DropBoundingSet),
            (!rootless).then_some(Step::BecomeUser { uid: 5, gid: 6 }),
            Some(Step::DropCapabilities),
            Some(Step::NoNewPrivileges),
            Some(Step::DieWithParent),
            Some(Step::Execute(vec!["prog".into(), "--quiet".into()])),
        ]
        .iter()
        .flatten()
        .map(|wanted| place(&plan, |step| step == wanted))
        .collect();
        assert!(order.is_sorted(), "{order:?}");
        let becomes = plan.steps().iter().any(|step| matches!(step, Step::BecomeUser { .. }));
        assert_eq!(becomes, !rootless, "there is nobody else to become");
    }
}

#[test]
fn a_cell_without_a_program_is_the_same_cell() {
    let whole = plan(&[]);
    let bare = whole.clone().without_program();
    assert_eq!(bare.steps().len() + 2, whole.steps().len());
    assert!(bare.steps().iter().all(|step| whole.steps().contains(step)));
}
