use super::*;
use crate::report::{Cache, Readable};
use crate::testing::Tree;

fn of(tree: &Tree) -> Machine {
    describe_under(tree.root(), Isa::Scalar, &Computes::Processor)
}

/// Four cores with two hyper-threads each.
fn server() -> Tree {
    let one = |cpu: u32| {
        format!(
            "processor\t: {cpu}\nvendor_id\t: GenuineIntel\nmodel name\t: Some  Server CPU @ 2.1GHz\ncpu MHz\t\t: 2100.0\n\
             flags\t\t: fpu sse avx2 aperfmperf\n\n"
        )
    };
    let mut tree = Tree::new()
        .with("proc/cpuinfo", (0..8).map(one).collect::<String>())
        .with("proc/meminfo", "MemTotal:  65536000 kB\nMemAvailable: 60000000 kB\n")
        .with("proc/sys/kernel/ostype", "Linux\n")
        .with("proc/sys/kernel/osrelease", "6.8.0-45-generic\n")
        .with("sys/class/dmi/id/sys_vendor", "Dell Inc.\n")
        .with("sys/class/dmi/id/product_name", "PowerEdge R760\n")
        .with("sys/devices/system/cpu/online", "0-7\n")
        .with("sys/class/powercap/intel-rapl:0/name", "package-0\n")
        .with("sys/class/powercap/intel-rapl:0/energy_uj", "123456\n")
        .with("sys/class/powercap/intel-rapl:0/max_energy_range_uj", "262143328850\n")
        .with("sys/class/powercap/intel-rapl:0:0/name", "core\n")
        .with("sys/class/powercap/intel-rapl:0:0/energy_uj", "12\n")
        .with("sys/class/powercap/intel-rapl:0:1/name", "dram\n")
        .with("sys/class/powercap/intel-rapl:0:1/energy_uj", "34\n")
        .with("sys/class/hwmon/hwmon0/name", "nvme\n")
        .with("sys/class/hwmon/hwmon0/temp1_input", "90000\n")
        .with("sys/class/hwmon/hwmon1/name", "coretemp\n")
        .with("sys/class/hwmon/hwmon1/temp1_input", "51000\n")
        .with("sys/class/hwmon/hwmon1/temp2_input", "49000\n")
        .allowed("0-5");
    for cpu in 0..8 {
        let siblings = format!("{},{}\n", cpu % 4, cpu % 4 + 4);
        tree = tree
            .cpu(cpu, "topology/thread_siblings_list", &siblings)
            .cpu(cpu, "cpufreq/cpuinfo_min_freq", "800000\n")
            .cpu(cpu, "cpufreq/cpuinfo_max_freq", if cpu == 2 { "4100000\n" } else { "3900000\n" })
            .cpu(cpu, "cpufreq/scaling_cur_freq", "2100000\n")
            .cpu(cpu, "cpufreq/scaling_governor", "powersave\n")
            .cpu(cpu, "thermal_throttle/core_throttle_count", "3\n");
        let caches = [
            ("1", "Data", "32K", "2,6"),
            ("1", "Instruction", "32K", "2,6"),
            ("2", "Unified", "2048K", "2,6"),
            ("3", "Unified", "32M", "0-7"),
        ];
        for (index, (level, kind, size, shared)) in caches.into_iter().enumerate() {
            for (file, content) in
                [("level", level), ("type", kind), ("size", size), ("shared_cpu_list", shared)]
            {
                tree = tree.cpu(cpu, &format!("cache/index{index}/{file}"), content);
            }
        }
    }
    tree
}

#[test]
fn a_server_with_hyper_threads() {
    let machine = of(&server());
    assert_eq!(machine.cpu.as_deref(), Some("Some  Server CPU @ 2.1GHz"));
    assert_eq!(machine.board.as_deref(), Some("Dell Inc. PowerEdge R760"));
    assert_eq!((machine.logical_cpus, machine.cores, machine.usable_cpus), (Some(8), Some(4), 6));
    assert_eq!(machine.frequency, Some([800_000_000, 4_100_000_000]));
    assert_eq!(machine.governor.as_deref(), Some("powersave"));
    let cache = |level, kind: &str, bytes, shared| Cache {
        level,
        kind: kind.to_owned(),
        bytes,
        shared_by: Some(shared),
    };
    let (data, instruction) = (cache(1, "data", 32 << 10, 2), cache(1, "instruction", 32 << 10, 2));
    assert_eq!(
        machine.caches,
        [data, instruction, cache(2, "unified", 2 << 20, 2), cache(3, "unified", 32 << 20, 8)]
    );
    assert_eq!(machine.memory_bytes, Some(65_536_000 * 1024));
    assert_eq!((machine.cgroup_memory_bytes, machine.cgroup_cpus), (None, None));
    assert_eq!(machine.kernel.as_deref(), Some("Linux 6.8.0-45-generic"));
    assert_eq!(machine.virtualised, None);
    assert_eq!(machine.isa, "scalar");
    let from = |text: &str| Readable::From(text.to_owned());
    assert_eq!(machine.sensors.frequency, from("scaling_cur_freq of cpufreq"));
    assert_eq!(machine.sensors.temperature, from("coretemp"));
    assert_eq!(machine.sensors.energy, from("RAPL: package-0, dram"));
    assert_eq!(machine.sensors.throttling, from("thermal_throttle of the processors"));
}

#[test]
fn a_board_with_big_and_little_cores() {
    let mut tree = Tree::new()
        .with("proc/cpuinfo", "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd05\n")
        .with("proc/device-tree/model", b"Radxa ROCK 5B\0")
        .with("sys/class/dmi/id/product_name", "not looked at\n")
        .with("sys/devices/system/cpu/online", "0-7\n")
        .with("sys/class/thermal/thermal_zone0/type", "soc-thermal\n")
        .with("sys/class/thermal/thermal_zone0/temp", "47153\n")
        .with("sys/class/thermal/thermal_zone1/type", "gpu-thermal\n")
        .with("sys/class/thermal/thermal_zone1/temp", "99000\n")
        .with("sys/class/thermal/thermal_zone2/type", "bigcore0-thermal\n")
        .with("sys/class/thermal/thermal_zone2/temp", "52000\n")
        .with("sys/class/thermal/cooling_device0/type", "thermal-cpufreq-0\n")
        .with("sys/class/thermal/cooling_device0/cur_state", "0\n")
        .allowed("0-7");
    for cpu in 0..8 {
        let (name, most, governor) = if cpu < 4 {
            ("arm,cortex-a55", "1800000", "schedutil")
        } else {
            ("arm,cortex-a76", "2400000", "ondemand")
        };
        tree = tree
            .cpu(cpu, "of_node/compatible", &format!("{name}\0"))
            .cpu(cpu, "topology/thread_siblings_list", &cpu.to_string())
            .cpu(cpu, "cpufreq/cpuinfo_min_freq", "408000")
            .cpu(cpu, "cpufreq/cpuinfo_max_freq", most)
            .cpu(cpu, "cpufreq/scaling_governor", governor);
    }
    let machine = of(&tree);
    assert_eq!(machine.cpu.as_deref(), Some("4 x arm,cortex-a55, 4 x arm,cortex-a76"));
    assert_eq!(machine.board.as_deref(), Some("Radxa ROCK 5B"));
    assert_eq!((machine.logical_cpus, machine.cores, machine.usable_cpus), (Some(8), Some(8), 8));
    assert_eq!(machine.frequency, Some([408_000_000, 2_400_000_000]));
    assert_eq!(machine.governor.as_deref(), Some("ondemand, schedutil"));
    assert_eq!(machine.sensors.temperature, Readable::From("soc-thermal, bigcore0-thermal".to_owned()));
    assert_eq!(machine.sensors.throttling, Readable::From("cooling devices".to_owned()));
    assert!(
        matches!(&machine.sensors.energy, Readable::Not(why) if why.contains("RAPL") && why.contains("battery"))
    );
    // Without a device tree, the numbers of the maker and the part.
    let parts = "processor: 0\nCPU implementer: 0x41\nCPU part: 0xd0c\nprocessor: 1\nCPU implementer: 0x41\nCPU part: 0xd0c\n";
    let machine = of(&Tree::new().with("proc/cpuinfo", parts));
    assert_eq!(machine.cpu.as_deref(), Some("implementer 0x41 part 0xd0c"));
    assert_eq!((machine.logical_cpus, machine.cores), (Some(2), None));
}

#[test]
fn containers_of_both_versions_of_control_groups() {
    let tree = Tree::new()
        .with("proc/self/cgroup", "0::/system.slice/docker-0123.scope\n")
        .with("sys/fs/cgroup/memory.max", "2000000000\n")
        .with("sys/fs/cgroup/cpu.max", "150000 100000\n")
        .with("sys/fs/cgroup/cpu.stat", "usage_usec 5\nnr_periods 9\nnr_throttled 4\n");
    let machine = of(&tree);
    assert_eq!((machine.cgroup_memory_bytes, machine.cgroup_cpus), (Some(2_000_000_000), Some(1.5)));
    assert_eq!(machine.virtualised.as_deref(), Some("container (Docker)"));
    assert_eq!(machine.sensors.throttling, Readable::From("cpu.stat of the control group".to_owned()));
    // A group around it leaves less; one without a quota leaves all.
    tree.set("sys/fs/cgroup/system.slice/docker-0123.scope/cpu.max", "max 100000\n");
    tree.set("sys/fs/cgroup/system.slice/cpu.max", "50000 100000\n");
    let quota = cpu_quota(tree.root()).unwrap();
    assert_eq!(quota.cpus, 0.5);
    assert!(quota.file.ends_with("system.slice/cpu.max"));

    let tree = Tree::new()
        .with("proc/self/cgroup", "5:memory:/kubepods/pod1/box\n4:cpu,cpuacct:/kubepods/pod1/box\n")
        .with("sys/fs/cgroup/memory/kubepods/pod1/memory.limit_in_bytes", "1000000000\n")
        .with("sys/fs/cgroup/cpu/kubepods/pod1/cpu.cfs_quota_us", "200000\n")
        .with("sys/fs/cgroup/cpu/kubepods/pod1/cpu.cfs_period_us", "100000\n")
        .with("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n")
        .with("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
    let machine = of(&tree);
    assert_eq!((machine.cgroup_memory_bytes, machine.cgroup_cpus), (Some(1_000_000_000), Some(2.0)));
    assert_eq!(machine.virtualised.as_deref(), Some("container (Kubernetes)"));
    // A service of the host's is no container.
    let service = Tree::new().with("proc/self/cgroup", "0::/system.slice/docker.service\n");
    assert_eq!(of(&service).virtualised, None);
}

#[test]
fn virtual_machines_are_told_from_machines() {
    let dmi = |vendor: &str, product: &str, flags: &str| {
        let tree = Tree::new()
            .with("proc/cpuinfo", format!("processor: 0\nflags\t: {flags}\n"))
            .with("sys/class/dmi/id/sys_vendor", vendor)
            .with("sys/class/dmi/id/product_name", product);
        of(&tree).virtualised
    };
    let is = |kind: &str| Some(format!("virtual machine ({kind})"));
    assert_eq!(dmi("Amazon EC2", "c7i.large", "fpu hypervisor"), is("Amazon EC2"));
    assert_eq!(dmi("Amazon EC2", "c7i.metal-24xl", "fpu"), None);
    assert_eq!(dmi("Microsoft Corporation", "Virtual Machine", "hypervisor"), is("Hyper-V"));
    assert_eq!(dmi("Microsoft Corporation", "Surface Laptop", "fpu"), None);
    assert_eq!(dmi("QEMU", "Standard PC", ""), is("QEMU"));
    assert_eq!(dmi("", "", "fpu hypervisor sse").as_deref(), Some("virtual machine"));
    assert_eq!(dmi("", "", "fpu hypervisors"), None);
    assert_eq!(
        of(&Tree::new().with("proc/device-tree/hypervisor/compatible", "linux,kvm\0")).virtualised,
        is("linux,kvm")
    );
    let both = Tree::new().with("proc/cpuinfo", "flags: hypervisor").with(".dockerenv", "");
    assert_eq!(of(&both).virtualised.as_deref(), Some("virtual machine, container (Docker)"));
}

#[test]
fn boards_that_were_never_told_their_name() {
    let placeholder = Tree::new()
        .with("sys/class/dmi/id/sys_vendor", "To Be Filled By O.E.M.")
        .with("sys/class/dmi/id/product_name", "To Be Filled By O.E.M.")
        .with("sys/class/dmi/id/board_vendor", "ASRock")
        .with("sys/class/dmi/id/board_name", "X570");
    assert_eq!(of(&placeholder).board.as_deref(), Some("ASRock X570"));
    placeholder.set("sys/class/dmi/id/board_name", "Default string");
    assert_eq!(of(&placeholder).board, None);
}

#[test]
fn of_nothing_nothing_is_known() {
    let machine = of(&Tree::new());
    let unknown = Machine {
        gpu: None,
        arch: std::env::consts::ARCH.to_owned(),
        isa: "scalar".to_owned(),
        isas: machine.isas.clone(),
        usable_cpus: std::thread::available_parallelism().unwrap().into(),
        default_threads: default_threads(),
        sensors: machine.sensors.clone(),
        cpu: None,
        board: None,
        logical_cpus: None,
        cores: None,
        frequency: None,
        governor: None,
        caches: Vec::new(),
        memory_bytes: None,
        cgroup_memory_bytes: None,
        cgroup_cpus: None,
        kernel: None,
        virtualised: None,
    };
    assert_eq!(machine, unknown);
    let sensors = &machine.sensors;
    for sensor in [&sensors.frequency, &sensors.temperature, &sensors.energy, &sensors.throttling] {
        assert!(matches!(sensor, Readable::Not(why) if !why.is_empty()), "{sensor:?}");
    }
}

#[test]
fn hostile_files_are_not_believed() {
    let long = "9".repeat(6 << 20);
    let hostile: [&[u8]; 9] = [
        b"",
        b"\0\0\0",
        b"-5",
        b"\xff\xfe\x80",
        b"nonsense\n",
        b"18446744073709551615",
        b"nan",
        b"1e400",
        long.as_bytes(),
    ];
    let files = [
        "proc/cpuinfo",
        "proc/meminfo",
        "proc/self/cgroup",
        "proc/device-tree/model",
        "proc/sys/kernel/ostype",
        "sys/devices/system/cpu/online",
        "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_min_freq",
        "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq",
        "sys/devices/system/cpu/cpu0/cache/index0/size",
        "sys/devices/system/cpu/cpu0/cache/index0/level",
        "sys/devices/system/cpu/cpu0/topology/thread_siblings_list",
        "sys/class/hwmon/hwmon1/temp1_input",
        "sys/class/hwmon/hwmon1/name",
        "sys/class/powercap/intel-rapl:0/energy_uj",
        "sys/class/powercap/intel-rapl:0/max_energy_range_uj",
        "sys/fs/cgroup/cpu.max",
    ];
    let one = server();
    for content in hostile {
        // One at a time, in a machine that is fine otherwise, and all at once.
        let all = server();
        for file in files {
            let before = std::fs::read(one.root().join(file)).unwrap_or_default();
            one.set(file, content);
            let machine = of(&one);
            assert!(machine.frequency.is_none_or(|[low, high]| low <= high), "{file}");
            one.set(file, before);
            all.set(file, content);
        }
        let machine = of(&all);
        assert!(
            machine.board.is_none_or(|name| name.chars().count() <= 120 && !name.contains(char::is_control))
        );
        assert_eq!((machine.frequency, machine.cores), (None, None));
    }
    // What would move a cursor is not taken into a name.
    let machine = of(&Tree::new().with("proc/device-tree/model", "Board\u{1b}[2J\u{7} 5\0junk"));
    assert_eq!(machine.board.as_deref(), Some("Board[2J 5"));
    let numbers = server();
    numbers.set("sys/class/hwmon/hwmon1/temp1_input", "-273200");
    numbers.set("sys/class/hwmon/hwmon1/temp2_input", "9223372036854775807");
    assert!(matches!(of(&numbers).sensors.temperature, Readable::Not(_)));
}

#[cfg(target_os = "linux")]
#[test]
fn this_machine_is_described() {
    let machine = describe(Isa::detect(), &Computes::Processor);
    assert!(machine.kernel.unwrap().starts_with("Linux "));
    assert!(
        machine.logical_cpus.unwrap() >= machine.usable_cpus
            && machine.usable_cpus >= machine.default_threads
    );
    assert!(machine.memory_bytes.unwrap() > 1 << 28);
    assert!(machine.isas.contains(&machine.isa));
}

#[test]
fn the_last_caches_are_added_up() {
    let cache = |tree: Tree, cpu: u32, index: u32, level: &str, size: &str, shared: &str| {
        [("level", level), ("type", "Unified"), ("size", size), ("shared_cpu_list", shared)]
            .into_iter()
            .fold(tree, |tree, (name, text)| {
                tree.cpu(cpu, &format!("cache/index{index}/{name}"), &format!("{text}\n"))
            })
    };
    let tree = Tree::new().with("sys/devices/system/cpu/online", "0-3\n");
    assert_eq!(last_level_caches(tree.root()), None);
    // Two clusters of two, each with a cache of its own.
    let tree = (0..4).fold(tree, |tree, cpu| {
        let cluster = if cpu < 2 { "0-1" } else { "2-3" };
        let tree = cache(tree, cpu, 0, "1", "32K", &cpu.to_string());
        cache(tree, cpu, 1, "2", "512K", cluster)
    });
    assert_eq!(last_level_caches(tree.root()), Some(1 << 20));
    let tree = cache(tree, 3, 2, "3", "8M", "0-3");
    assert_eq!(last_level_caches(tree.root()), Some(8 << 20));
    // What makes no sense is as if it were not there.
    let tree = cache(tree, 3, 3, "4", "lots", "0-3");
    let tree = cache(tree, 2, 3, "x", "1K", "0-3");
    assert_eq!(last_level_caches(tree.root()), Some(8 << 20));
}
