//! Controllers of control groups, and what gives them to an ordinary user.

use super::super::cgroups::Facts;
use super::*;

#[test]
fn controllers_that_only_limits_need_are_told_with_what_delegates_them() {
    const GROUP: &str = "sys/fs/cgroup/user.slice/alice/cgroup.controllers";
    let tree = Tree::fine();
    let examine = |user: &User, name: &str| {
        let mut facts = Facts::collect(&tree.root());
        // The tree's group belongs to whoever runs the tests.
        if let Some((_, owner, _)) = &mut facts.own {
            *owner = user.uid;
        }
        named(facts.judge(user), name)
    };
    let root = examine(&ROOT_USER, "cgroup io");
    assert_eq!((root.verdict, root.found.as_str()), (Verdict::Ok, "handed to groups when asked for"));
    let io = examine(&ALICE, "cgroup io");
    assert_eq!(
        (io.verdict, io.found.as_str()),
        (Verdict::Note, "not delegated: /user.slice/alice is yours, without io")
    );
    assert!(io.mend.unwrap().ends_with("Delegate=cpu cpuset io memory pids"));
    // systemd knows nothing of hugetlb: each level above the group hands it down by hand.
    let hugetlb = examine(&ALICE, "cgroup hugetlb").mend.unwrap();
    assert_eq!(
        hugetlb,
        "for file in '/sys/fs/cgroup/cgroup.subtree_control' '/sys/fs/cgroup/user.slice/cgroup.subtree_control'; \
         do echo +hugetlb > \"$file\"; done"
    );
    tree.write(GROUP, "memory pids io hugetlb");
    for name in ["cgroup io", "cgroup hugetlb"] {
        let check = examine(&ALICE, name);
        assert_eq!(
            (check.verdict, check.found.as_str()),
            (Verdict::Ok, "delegated: /user.slice/alice has it")
        );
    }
    tree.write("proc/self/cgroup", "0::/somebody/else");
    let none = examine(&ALICE, "cgroup io");
    assert!(none.verdict == Verdict::Note && none.mend.unwrap().contains("Delegate=yes"), "{}", none.found);
}
