use std::process::{Child, Command, Stdio};

use super::*;
use crate::testing::Tree;

/// Times on a clock of the test's own.
fn clock() -> impl Fn(f64) -> Instant {
    let start = Instant::now();
    move |seconds| start + Duration::from_secs_f64(seconds)
}

fn start(tree: &Tree, now: Instant) -> Trace {
    Trace::start(tree.root(), usable(tree.root()), &Computes::Processor, now)
}

const RAPL: &str = "sys/class/powercap/intel-rapl:0/energy_uj";
const ZONE: &str = "sys/class/thermal/thermal_zone0/temp";
const CLOCK: &str = "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq";

/// A processor with every sensor.
fn machine() -> Tree {
    Tree::new()
        .allowed("0-1")
        .with(RAPL, "1000000\n")
        .with("sys/class/powercap/intel-rapl:0/name", "package-0\n")
        .with("sys/class/powercap/intel-rapl:0/max_energy_range_uj", "20000000\n")
        .with(ZONE, "50000\n")
        .with("sys/class/thermal/thermal_zone0/type", "cpu-thermal\n")
        .with(CLOCK, "2000000\n")
        .cpu(1, "cpufreq/scaling_cur_freq", "1000000\n")
        .cpu(0, "thermal_throttle/core_throttle_count", "7\n")
        .with("proc/self/clear_refs", "")
        .with("proc/self/status", "VmHWM:\t2000 kB\nVmRSS:\t1000 kB\n")
        .with("proc/self/stat", own(100, 10, 1))
        .with("proc/stat", processors(1000, 500, 0))
}

/// `/proc/self/stat` of a program with a name that is made to confuse.
fn own(ticks: u64, minor: u64, major: u64) -> String {
    format!("77 (mo) li (x) S 1 77 77 0 -1 4194304 {minor} 0 {major} 0 {ticks} 20 0 0 20 0 1 0 100 0 0\n")
}

/// `/proc/stat` of three processors, the third of which is not this process's.
fn processors(first: u64, second: u64, stolen: u64) -> String {
    format!(
        "cpu  1 2 3 4 5 6 7 8 0 0\ncpu0 {first} 1 2 9999 9 3 4 {stolen} 0 0\ncpu1 {second} 0 0 9999 0 0 0 0 0 0\n\
         cpu2 777777 0 0 0 0 0 0 0 0 0\nintr 5 6 7\n"
    )
}

#[test]
fn the_conditions_of_a_run() {
    let (tree, at) = (machine(), clock());
    let mut trace = start(&tree, at(0.0));
    tree.set(CLOCK, "3000000");
    tree.set(ZONE, "71500");
    tree.set(RAPL, "4000000");
    trace.sample(at(1.0));
    tree.set(CLOCK, "2500000");
    tree.set(ZONE, "60000");
    tree.set(RAPL, "9000000");
    tree.set("sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count", "9");
    tree.set("proc/self/stat", own(250, 15, 4));
    // 200 + 40 ticks of two processors in 2 s, of which 150 are this process's; 20 went to other machines.
    tree.set("proc/stat", processors(1200, 540, 20));
    let (conditions, notes) = trace.finish(4, at(2.0));
    let expected = Conditions {
        cpu_seconds: Some(1.5),
        wall_seconds: conditions.wall_seconds,
        peak_resident_bytes: Some(2_048_000),
        resident_bytes: Some(1_024_000),
        major_faults: Some(3),
        minor_faults: Some(5),
        others: Some(0.225),
        stolen: Some(0.05),
        frequency: Some([1e9, 2.5e9, 3e9]),
        temperature: Some(71.5),
        throttled: Some(2),
        joules: Some(8.0),
        joules_per_token: Some(2.0),
    };
    assert_eq!(conditions, expected);
    assert!((conditions.wall_seconds - 2.0).abs() < 1e-9);
    let told = |part: &str| notes.iter().any(|note| note.contains(part));
    assert!(told("`others`"), "{notes:?}");
    assert!(told("`stolen`") && told("`throttled`"), "{notes:?}");
    assert_eq!(notes.len(), 3);
}

#[test]
fn a_quiet_run_has_no_notes_and_no_tokens_no_energy_of_one() {
    let (tree, at) = (machine(), clock());
    let trace = start(&tree, at(0.0));
    let (conditions, notes) = trace.finish(0, at(2.0));
    assert_eq!(notes, Vec::<String>::new());
    assert_eq!((conditions.joules, conditions.joules_per_token), (Some(0.0), None));
    assert_eq!((conditions.others, conditions.throttled), (Some(0.0), Some(0)));
}

#[test]
fn moments_tell_what_was_since_the_last() {
    let (tree, at) = (machine(), clock());
    let mut trace = start(&tree, at(0.0));
    tree.set(ZONE, "80000");
    tree.set(RAPL, "5000000");
    trace.sample(at(1.0));
    tree.set(ZONE, "70000");
    tree.set(RAPL, "11000000");
    let first = trace.moment(at(2.0));
    assert_eq!((first.temperature, first.frequency), (Some(80.0), Some(2e9)));
    assert!((first.watts.unwrap() - 5.0).abs() < 1e-9, "{first:?}");
    tree.set(RAPL, "12000000");
    tree.set(CLOCK, "800000");
    let second = trace.moment(at(4.0));
    assert_eq!((second.temperature, second.frequency), (Some(70.0), Some(1e9)));
    assert!((second.watts.unwrap() - 0.5).abs() < 1e-9, "{second:?}");
    // No time has passed.
    assert_eq!(trace.moment(at(4.0)).watts, None);
}

#[test]
fn a_counter_of_energy_begins_again_behind_its_range() {
    let (tree, at) = (machine(), clock());
    tree.set(RAPL, "19000000");
    let mut trace = start(&tree, at(0.0));
    tree.set(RAPL, "500000");
    trace.sample(at(1.0));
    tree.set(RAPL, "2000000");
    assert_eq!(trace.finish(1, at(2.0)).0.joules, Some(3.0));
}

#[test]
fn a_counter_that_was_set_back_is_no_energy() {
    let set_back = |range: Option<&str>, from: &str, to: &str| {
        let (tree, at) = (machine(), clock());
        tree.remove("sys/class/powercap/intel-rapl:0/max_energy_range_uj");
        if let Some(range) = range {
            tree.set("sys/class/powercap/intel-rapl:0/max_energy_range_uj", range);
        }
        tree.set(RAPL, from);
        let mut trace = start(&tree, at(0.0));
        tree.set(RAPL, to);
        trace.sample(at(1.0));
        let (conditions, notes) = trace.finish(1, at(2.0));
        assert_eq!((conditions.joules, conditions.joules_per_token), (None, None));
        assert!(notes.iter().any(|note| note.contains("energy") && note.contains("energy_uj")), "{notes:?}");
    };
    // Back to 0 far from the end of the range; without a known range; behind the range; a leap.
    set_back(Some("262143328850"), "130000000000", "0");
    set_back(None, "1000", "0");
    set_back(Some("500"), "1000", "0");
    set_back(Some("262143328850"), "0", "130000000000");
    set_back(Some("262143328850"), "0", "-1");
}

#[test]
fn a_sensor_that_vanishes_gives_nothing_from_then_on() {
    let (tree, at) = (machine(), clock());
    let mut trace = start(&tree, at(0.0));
    trace.sample(at(1.0));
    for file in [RAPL, ZONE, CLOCK] {
        tree.remove(file);
    }
    tree.set("sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count", "none");
    assert_eq!(trace.moment(at(2.0)), Reading::default());
    // It stays lost when it comes back: what was meanwhile nobody knows.
    tree.set(RAPL, "9000000");
    tree.set(ZONE, "55000");
    assert_eq!(trace.moment(at(3.0)), Reading::default());
    let (conditions, notes) = trace.finish(1, at(4.0));
    assert_eq!((conditions.joules, conditions.joules_per_token), (None, None));
    assert_eq!((conditions.temperature, conditions.frequency, conditions.throttled), (None, None, None));
    for what in ["energy", "temperature", "frequency", "throttling"] {
        let begin = format!("the {what} could not be read any more after 2.0 s: ");
        assert_eq!(notes.iter().filter(|note| note.starts_with(&begin)).count(), 1, "{notes:?}");
    }
    // All else is still known.
    assert!(conditions.cpu_seconds.is_some() && conditions.others.is_some());
}

#[test]
fn nonsense_is_as_good_as_nothing() {
    for (file, nonsense) in [
        (ZONE, "-273200"),
        (ZONE, "9999999"),
        (ZONE, "hot"),
        (ZONE, "0"),
        (CLOCK, "0"),
        (CLOCK, "nan"),
        (CLOCK, "-1"),
        (CLOCK, "99999999999"),
        (RAPL, "inf"),
    ] {
        let (tree, at) = (machine(), clock());
        let mut trace = start(&tree, at(0.0));
        tree.set(file, nonsense);
        trace.sample(at(1.0));
        let (conditions, notes) = trace.finish(1, at(2.0));
        let known = [conditions.joules, conditions.temperature, conditions.frequency.map(|f| f[1])];
        assert_eq!(known.iter().flatten().count(), 2, "{file} {nonsense} {conditions:?}");
        assert_eq!(notes.len(), 1, "{notes:?}");
    }
}

#[test]
fn times_that_vanish_or_fall_are_not_given() {
    let conditions = |file: &str, content: &str| {
        let (tree, at) = (machine(), clock());
        let trace = start(&tree, at(0.0));
        tree.set(file, content);
        trace.finish(1, at(2.0)).0
    };
    for content in ["", "cpu0 1 2", "cpu0 x", &processors(1, 1, 0), "cpu0 1000 1 2 9999 9 3 4 0 0 0\n"] {
        let conditions = conditions("proc/stat", content);
        assert_eq!((conditions.others, conditions.stolen), (None, None), "{content}");
    }
    for content in ["", "1 (x", "1 (x) S 1 2", &own(1, 1, 0), &own(u64::MAX, 10, 1)] {
        let conditions = conditions("proc/self/stat", content);
        assert_eq!((conditions.cpu_seconds, conditions.others), (None, None), "{content}");
    }
    assert_eq!(conditions("proc/self/status", "VmRSS: 1 MB").resident_bytes, None);
    // A share of a few ticks is none.
    let (tree, at) = (machine(), clock());
    assert_eq!(start(&tree, at(0.0)).finish(1, at(0.1)).0.others, None);
}

#[test]
fn the_power_of_a_board_is_integrated() {
    let meter = |file: &str| format!("sys/class/hwmon/hwmon2/{file}");
    let tree = Tree::new()
        .with(&meter("name"), "ina3221\n")
        .with(&meter("in1_label"), "VDD_CPU_GPU_CV\n")
        .with(&meter("in1_input"), "5000\n")
        .with(&meter("curr1_input"), "9000\n")
        .with(&meter("in2_label"), "VDD_IN\n")
        .with(&meter("in2_input"), "5000\n")
        .with(&meter("curr2_input"), "1000\n");
    let at = clock();
    let trace = start(&tree, at(0.0));
    tree.set(&meter("curr2_input"), "3000");
    // From 5 W to 15 W within 2 s.
    let joules = trace.finish(10, at(2.0)).0.joules.unwrap();
    assert!((joules - 20.0).abs() < 0.1, "{joules}");
    // Rails of which none is the input are parts that nobody can add up.
    tree.set(&meter("in2_label"), "VDD_SOC\n");
    let energy = sensors(tree.root(), &Computes::Processor).energy;
    assert!(matches!(&energy, report::Readable::Not(why) if why.contains("ina3221")), "{energy:?}");
}

#[test]
fn a_battery_is_read_while_it_is_discharged() {
    let file = |file: &str| format!("sys/class/power_supply/BAT0/{file}");
    let tree = Tree::new()
        .with(&file("type"), "Battery\n")
        .with(&file("status"), "Discharging\n")
        .with(&file("current_now"), "-2000000\n")
        .with(&file("voltage_now"), "10000000\n");
    let at = clock();
    let joules = start(&tree, at(0.0)).finish(1, at(1.0)).0.joules.unwrap();
    assert!((joules - 20.0).abs() < 0.1, "{joules}");
    let trace = start(&tree, at(0.0));
    tree.set(&file("status"), "Charging\n");
    let (conditions, notes) = trace.finish(1, at(1.0));
    assert_eq!(conditions.joules, None);
    assert!(notes[0].contains("not discharging (Charging)"), "{notes:?}");
    let energy = sensors(tree.root(), &Computes::Processor).energy;
    assert!(matches!(&energy, report::Readable::Not(why) if why.contains("Charging")), "{energy:?}");
}

#[test]
fn being_slowed_down_counts_each_time() {
    let state = "sys/class/thermal/cooling_device3/cur_state";
    let bits = "sys/devices/platform/soc/soc:firmware/get_throttled";
    let tree = Tree::new()
        .with("sys/class/thermal/cooling_device3/type", "thermal-cpufreq-0")
        .with(state, "0")
        .with("sys/class/thermal/cooling_device4/type", "pwm-fan")
        .with("sys/class/thermal/cooling_device4/cur_state", "3")
        .with(bits, "50000")
        .with("proc/self/cgroup", "0::/\n")
        .with("sys/fs/cgroup/cpu.stat", "usage_usec 5\nnr_throttled 4\n");
    let at = clock();
    let mut trace = start(&tree, at(0.0));
    for (now, content) in [(1.0, "2"), (2.0, "4"), (3.0, "0"), (4.0, "1")] {
        tree.set(state, content);
        trace.sample(at(now));
    }
    tree.set(bits, "50005");
    tree.set("sys/fs/cgroup/cpu.stat", "usage_usec 5\nnr_throttled 14\n");
    // Twice by the kernel, once by the firmware, ten times by the quota.
    assert_eq!(trace.finish(1, at(5.0)).0.throttled, Some(13));
}

#[test]
fn of_nothing_only_the_time_is_known() {
    let tree = Tree::new();
    let mut watch = Watch::under(tree.root().to_owned(), &Computes::Processor);
    assert_eq!(watch.moment(), Reading::default());
    let (conditions, notes) = watch.finish(1);
    assert_eq!(conditions, Conditions { wall_seconds: conditions.wall_seconds, ..Conditions::default() });
    assert!(notes.is_empty());
}

#[test]
fn the_thread_sees_what_is_over_at_the_end() {
    let tree = machine();
    let watch = Watch::under(tree.root().to_owned(), &Computes::Processor);
    tree.set(ZONE, "90000");
    // Until the thread has looked, however slow the machine is.
    while watch.shared.lock().trace.as_ref().is_some_and(|trace| !trace.has_seen(90.0)) {
        thread::sleep(PERIOD / 4);
    }
    tree.set(ZONE, "50000");
    assert_eq!(watch.finish(1).0.temperature, Some(90.0));
}

/// Another process that keeps a processor busy until it is dropped.
struct Busy(Child);

impl Busy {
    fn new() -> Self {
        let mut shell = Command::new("sh");
        Self(shell.args(["-c", "while :; do :; done"]).stdin(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(target_os = "linux")]
#[test]
fn another_process_is_noticed_and_this_one_is_not_another() {
    let cpus = usable(Path::new("/")).len();
    let others: Vec<_> = (0..cpus).map(|_| Busy::new()).collect();
    let watch = Watch::start(&Computes::Processor);
    thread::sleep(Duration::from_secs(1));
    let (conditions, notes) = watch.finish(1);
    drop(others);
    assert!(conditions.others.unwrap() > 0.2, "{conditions:?}");
    assert!(notes.iter().any(|note| note.contains("other processes used")), "{notes:?}");
    assert!(conditions.cpu_seconds.is_some() && conditions.resident_bytes.unwrap() > 1 << 20);

    // What this process does is its own: of a processor that it keeps busy, others get what they can take of it.
    let watch = Watch::start(&Computes::Processor);
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(1) {
        std::hint::black_box(start);
    }
    let (conditions, _) = watch.finish(1);
    let (own, others) = (conditions.cpu_seconds.unwrap(), conditions.others.unwrap());
    let all = conditions.wall_seconds * cpus as f64;
    assert!(own > 0.1 && own + others * all <= all * 1.1, "{conditions:?}");
}

#[cfg(target_os = "linux")]
#[test]
fn looking_costs_less_than_a_hundredth() {
    let (root, rounds) = (Path::new("/"), 200);
    let mut trace = Trace::start(root, usable(root), &Computes::Processor, Instant::now());
    let start = Instant::now();
    (0..rounds).for_each(|_| trace.sample(Instant::now()));
    let each = start.elapsed() / rounds;
    // The rest between two looks grows with what they take.
    let rest = PERIOD.max(each * LEAST_REST);
    println!("a look takes {each:?}, in {rest:?}");
    assert!(each.as_secs_f64() / rest.as_secs_f64() < 0.01);
    assert!(rest < Duration::from_secs(2), "a look takes {each:?}");
}
