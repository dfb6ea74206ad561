//! The example for Kubernetes hangs together: each manifest is read, each name in it leads somewhere,
//! ports and labels meet, the image has what its recipe copies, and what is typed or probed is what
//! stekctl takes. What Kubernetes itself makes of it is for `make container-check`, as far as that goes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_yaml::{Deserializer, Value};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const HOME: &str = "packaging/kubernetes";

fn read(name: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(name)).unwrap_or_else(|why| panic!("{name}: {why}"))
}

/// The documents of a file.
fn documents(name: &str) -> Vec<Value> {
    let text = read(name);
    let read = Deserializer::from_str(&text).map(<Value as serde::Deserialize>::deserialize);
    read.map(|document| document.unwrap_or_else(|why| panic!("{name}: {why}"))).collect()
}

/// Manifests below the folder, with their files: `kubectl` reads what ends in yaml, and the example of a
/// Secret is for people.
fn manifests() -> Vec<(String, Value)> {
    let mut found = Vec::new();
    for folder in [HOME.to_owned(), format!("{HOME}/operators")] {
        for entry in fs::read_dir(Path::new(ROOT).join(&folder)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name.ends_with(".yaml") || name.ends_with(".yaml.example") {
                let file = format!("{folder}/{name}");
                found.extend(documents(&file).into_iter().map(|one| (file.clone(), one)));
            }
        }
    }
    found
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value:?}"))
}

fn list(value: &Value) -> &[Value] {
    value.as_sequence().map_or(&[], Vec::as_slice)
}

/// The one manifest of a kind and name.
fn one<'a>(all: &'a [(String, Value)], kind: &str, name: &str) -> &'a Value {
    let is_it = |document: &Value| document["kind"] == kind && document["metadata"]["name"] == name;
    let found: Vec<&Value> = all.iter().map(|(_, one)| one).filter(|one| is_it(one)).collect();
    let [one] = found.as_slice() else { panic!("{} of {kind} {name}", found.len()) };
    one
}

fn set(all: &[(String, Value)]) -> &Value {
    one(all, "StatefulSet", "traffic-server")
}

fn containers(set: &Value) -> &[Value] {
    list(&set["spec"]["template"]["spec"]["containers"])
}

/// The names and numbers of all ports of the containers.
fn ports(set: &Value) -> (BTreeSet<String>, BTreeSet<u64>) {
    let ports = || containers(set).iter().flat_map(|one| list(&one["ports"]));
    let names = ports().map(|port| text(&port["name"]).to_owned()).collect();
    (names, ports().map(|port| port["containerPort"].as_u64().unwrap()).collect())
}

/// Whether stekctl takes these words, as far as it can be told without doing it.
fn is_taken(words: &[&str]) -> bool {
    let mut stekctl = Command::new(env!("CARGO_BIN_EXE_stekctl"));
    let said = stekctl.args(words).arg("--help").stdin(Stdio::null()).output().unwrap();
    said.status.success()
}

#[test]
fn each_manifest_is_one_that_kubernetes_knows() {
    let all = manifests();
    let kinds: BTreeSet<(&str, &str)> =
        all.iter().map(|(_, one)| (text(&one["apiVersion"]), text(&one["kind"]))).collect();
    let known = BTreeSet::from([
        ("apps/v1", "StatefulSet"),
        ("cert-manager.io/v1", "Certificate"),
        ("cert-manager.io/v1", "Issuer"),
        ("monitoring.coreos.com/v1", "PodMonitor"),
        ("networking.k8s.io/v1", "NetworkPolicy"),
        ("policy/v1", "PodDisruptionBudget"),
        ("v1", "ConfigMap"),
        ("v1", "Secret"),
        ("v1", "Service"),
    ]);
    assert_eq!(kinds, known);
    let names: BTreeSet<(&str, &str)> =
        all.iter().map(|(_, one)| (text(&one["kind"]), text(&one["metadata"]["name"]))).collect();
    assert_eq!(names.len(), all.len(), "no two have one name: {names:?}");
    let page = read(&format!("{HOME}/README.md"));
    for (file, _) in &all {
        let name = file.strip_prefix(&format!("{HOME}/")).unwrap();
        assert!(page.contains(&format!("| `{name}` |")), "README.md says nothing of {name}");
    }
}

#[test]
fn what_selects_pods_selects_these() {
    let all = manifests();
    let labels = &set(&all)["spec"]["template"]["metadata"]["labels"];
    let mut count = 0;
    let mut meets = |file: &str, wanted: &Value| {
        for (name, value) in wanted.as_mapping().unwrap() {
            count += 1;
            assert_eq!(&labels[name], value, "{file}: {name:?}");
        }
    };
    for (file, one) in &all {
        let spec = &one["spec"];
        match text(&one["kind"]) {
            "Service" => meets(file, &spec["selector"]),
            "StatefulSet" => {
                meets(file, &spec["selector"]["matchLabels"]);
                let spread = list(&spec["template"]["spec"]["topologySpreadConstraints"]);
                spread.iter().for_each(|one| meets(file, &one["labelSelector"]["matchLabels"]));
            }
            "PodDisruptionBudget" | "PodMonitor" => meets(file, &spec["selector"]["matchLabels"]),
            "NetworkPolicy" => {
                meets(file, &spec["podSelector"]["matchLabels"]);
                let from = list(&spec["ingress"]).iter().flat_map(|rule| list(&rule["from"]));
                let pods = from.map(|peer| &peer["podSelector"]).filter(|one| !one.is_null());
                pods.for_each(|one| meets(file, &one["matchLabels"]));
            }
            _ => {}
        }
    }
    assert_eq!(count, 8);
    // The alarms of examples/ go by a job, which is the value of that label.
    let monitor = one(&all, "PodMonitor", "traffic-server");
    assert!(!labels[text(&monitor["spec"]["jobLabel"])].is_null());
}

#[test]
fn each_port_that_is_named_is_open_and_no_other() {
    let all = manifests();
    let set = set(&all);
    let (names, numbers) = ports(set);
    assert_eq!(names, ["https", "metrics", "stek-share"].map(str::to_owned).into());
    assert!(names.contains(text(&containers(set)[0]["livenessProbe"]["tcpSocket"]["port"])));
    let clients = one(&all, "Service", "traffic-server");
    list(&clients["spec"]["ports"])
        .iter()
        .for_each(|port| assert!(names.contains(text(&port["targetPort"]))));
    let monitor = one(&all, "PodMonitor", "traffic-server");
    for endpoint in list(&monitor["spec"]["podMetricsEndpoints"]) {
        assert!(names.contains(text(&endpoint["port"])), "{endpoint:?}");
    }
    let policy = one(&all, "NetworkPolicy", "traffic-server");
    let open = list(&policy["spec"]["ingress"]).iter().flat_map(|rule| list(&rule["ports"]));
    let open: BTreeSet<u64> = open.map(|port| port["port"].as_u64().unwrap()).collect();
    assert_eq!(open, numbers, "the policy opens what the containers serve");

    // The servers' own port is that of the list, under the names that the headless service gives.
    let peers = one(&all, "Service", text(&set["spec"]["serviceName"]));
    assert_eq!(peers["spec"]["clusterIP"], "None");
    let own: Vec<u64> =
        list(&peers["spec"]["ports"]).iter().map(|port| port["port"].as_u64().unwrap()).collect();
    let config = one(&all, "ConfigMap", "stek-share");
    let members: Value = serde_yaml::from_str(text(&config["data"]["server_list.yaml"])).unwrap();
    for member in list(&members) {
        assert_eq!(own, [member["port"].as_u64().unwrap()]);
        let service = text(&member["address"]).split_once('.').unwrap().1;
        assert_eq!(service, text(&set["spec"]["serviceName"]));
    }
    let recipe = read("packaging/container/Dockerfile");
    let exposed = recipe.lines().filter_map(|line| line.strip_prefix("EXPOSE "));
    let exposed: BTreeSet<u64> =
        exposed.flat_map(|line| line.split(' ').map(|port| port.parse().unwrap())).collect();
    assert_eq!(exposed, numbers, "the recipe");
}

#[test]
fn what_is_mounted_exists() {
    let all = manifests();
    let set = set(&all);
    let volumes = list(&set["spec"]["template"]["spec"]["volumes"]);
    for volume in volumes {
        let source = match () {
            () if !volume["configMap"].is_null() => ("ConfigMap", &volume["configMap"]["name"]),
            () if !volume["secret"].is_null() => ("Secret", &volume["secret"]["secretName"]),
            () => {
                assert_eq!(volume["emptyDir"]["medium"], "Memory", "{volume:?}");
                continue;
            }
        };
        one(&all, source.0, text(source.1));
    }
    let config = one(&all, "ConfigMap", "stek-share");
    for mount in containers(set).iter().flat_map(|one| list(&one["volumeMounts"])) {
        assert!(volumes.iter().any(|volume| volume["name"] == mount["name"]), "{mount:?}");
        if let Some(key) = mount["subPath"].as_str() {
            assert!(!config["data"][key].is_null(), "{key}");
        }
    }
    // What the configuration names lies where the Secret and the state are mounted.
    let mounts = list(&containers(set)[0]["volumeMounts"]);
    let secret = one(&all, "Secret", "stek-share-certificates");
    let conf: Value = serde_yaml::from_str(text(&config["data"]["server_conf.yaml"])).unwrap();
    for option in ["root_cert_file", "server_cert_file", "server_key_file"] {
        let path = Path::new(text(&conf[option]));
        let key = path.file_name().unwrap().to_str().unwrap();
        assert!(!secret["stringData"][key].is_null(), "{option}: {key}");
        let dir = path.parent().unwrap().to_str().unwrap();
        assert!(mounts.iter().any(|mount| mount["mountPath"] == dir), "{option}: {dir}");
    }
    let state = Path::new(text(&conf["state_dir"])).parent().unwrap().to_str().unwrap();
    assert!(mounts.iter().any(|mount| mount["mountPath"] == state), "{state}");
}

#[test]
fn certificates_of_the_operator_come_from_issuers_that_are_there() {
    let file = format!("{HOME}/operators/cert-manager.yaml");
    let all: Vec<(String, Value)> =
        documents(&file).into_iter().map(|one| (file.clone(), one)).collect();
    let certificate = one(&all, "Certificate", "stek-share-root");
    one(&all, "Issuer", text(&certificate["spec"]["issuerRef"]["name"]));
    let issuer = one(&all, "Issuer", "stek-share");
    assert_eq!(issuer["spec"]["ca"]["secretName"], certificate["spec"]["secretName"]);

    // The volume that its remark tells to put in.
    let remark = read(&file);
    let volume: String = remark
        .lines()
        .filter_map(|line| line.strip_prefix("#     "))
        .map(|line| format!("{line}\n"))
        .collect();
    let volume: Value = serde_yaml::from_str(&volume).unwrap();
    let manifests = manifests();
    let set = set(&manifests);
    let spec = &set["spec"]["template"]["spec"];
    assert!(list(&spec["volumes"]).iter().any(|one| one["name"] == volume[0]["name"]));
    let asked = &volume[0]["csi"]["volumeAttributes"];
    let of = |name: &str| text(&asked[format!("csi.cert-manager.io/{name}")]);
    one(&all, "Issuer", of("issuer-name"));
    let config = one(&manifests, "ConfigMap", "stek-share");
    let conf: Value = serde_yaml::from_str(text(&config["data"]["server_conf.yaml"])).unwrap();
    assert_eq!(text(&conf["cert_verify_str"]), format!("/CN={}", of("common-name")));
    let service = text(&set["spec"]["serviceName"]);
    assert_eq!(of("dns-names"), format!("${{POD_NAME}}.{service}"));
    assert_eq!(of("fs-group"), spec["securityContext"]["fsGroup"].as_u64().unwrap().to_string());
    assert!(of("key-usages").contains("server auth"));
}

#[test]
fn the_images_are_those_of_the_recipe_and_have_what_it_copies() {
    let recipe = read("packaging/container/Dockerfile");
    let builder = read("tools/container.sh");
    let all = manifests();
    let set = set(&all);
    for container in containers(set) {
        let image = text(&container["image"]).rsplit('/').next().unwrap();
        let (name, version) = image.split_once(':').unwrap();
        assert_eq!(version, env!("CARGO_PKG_VERSION"), "{image}");
        let target = builder.split(' ').find_map(|word| {
            let (target, image) = word.trim_end_matches(';').split_once(':')?;
            (image == name).then_some(target)
        });
        let target = target.unwrap_or_else(|| panic!("tools/container.sh builds no {name}"));
        assert!(recipe.contains(&format!(" AS {target}\n")), "the recipe has no {target}");
    }
    // What is copied is beside the recipe, or put there by the builder.
    let copied: Vec<&str> = recipe
        .lines()
        .filter_map(|line| line.strip_prefix("COPY "))
        .filter_map(|line| line.split(' ').find(|word| !word.starts_with("--")))
        .collect();
    assert_eq!(copied.len(), 3, "{copied:?}");
    for name in copied {
        let beside = Path::new(ROOT).join("packaging/container").join(name).is_file();
        let put = builder.split_whitespace().any(|word| {
            let word = word.trim_matches('"');
            word == format!("$context/{name}") || word.ends_with(&format!("/{name}"))
        });
        assert!(beside || put, "{name}");
    }
    for path in builder
        .split_whitespace()
        .filter(|word| ["packaging/", "examples/"].iter().any(|place| word.starts_with(place)))
    {
        let path = PathBuf::from(ROOT).join(path.trim_end_matches(['*', ':']));
        assert!(path.exists(), "{}", path.display());
    }
    let user = set["spec"]["template"]["spec"]["securityContext"]["runAsUser"].as_u64().unwrap();
    assert!(recipe.contains(&format!("--uid {user} ")), "the user of the manifest is the image's");
}

#[test]
fn probes_and_their_script_give_words_that_stekctl_takes() {
    let all = manifests();
    let server = &containers(set(&all))[0];
    let probe = &server["readinessProbe"];
    let command: Vec<&str> = list(&probe["exec"]["command"]).iter().map(text).collect();
    let [script, seconds] = command[..] else { panic!("{command:?}") };
    seconds.parse::<u32>().unwrap();
    let text_of_script = read(&format!("packaging/container/{script}"));
    let copy = format!("{script} /usr/local/bin/");
    assert!(read("packaging/container/Dockerfile").contains(&copy), "{copy}");
    let asked = text_of_script.lines().find_map(|line| line.strip_prefix("stekctl ")).unwrap();
    let words: Vec<&str> = asked.split(" || ").next().unwrap().split(' ').collect();
    assert!(is_taken(&words), "{words:?}");
    let limit = words.iter().skip_while(|word| **word != "--timeout").nth(1).unwrap();
    let patience = probe["timeoutSeconds"].as_u64().unwrap();
    assert!(limit.parse::<u64>().unwrap() < patience, "the probe ends before stekctl does");
    // What is waited for before the end has to fit into the time that is granted.
    let wait: Vec<&str> =
        list(&server["lifecycle"]["preStop"]["exec"]["command"]).iter().map(text).collect();
    let ["sleep", wait] = wait[..] else { panic!("{wait:?}") };
    let granted = &set(&all)["spec"]["template"]["spec"]["terminationGracePeriodSeconds"];
    assert!(wait.parse::<u64>().unwrap() + 30 < granted.as_u64().unwrap());
}

/// The Markdown files below a folder.
fn pages(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            pages(&path, found);
        } else if path.extension().is_some_and(|end| end == "md") {
            found.push(path);
        }
    }
}

#[test]
fn each_line_of_kubectl_does_what_there_is() {
    let mut found = vec![Path::new(ROOT).join("README.md")];
    ["docs", "packaging"].iter().for_each(|dir| pages(&Path::new(ROOT).join(dir), &mut found));
    let all = manifests();
    let mut count = 0;
    for page in found {
        let text = fs::read_to_string(&page).unwrap().replace("\\\n", " ");
        for typed in text.lines().filter_map(|line| line.split_once("kubectl ").map(|(_, l)| l)) {
            let typed = typed.split('`').next().unwrap();
            // Prose names the command, too.
            let words: Vec<&str> = typed.split_whitespace().collect();
            count += usize::from(is_sound(&words, &all, typed));
        }
    }
    assert_eq!(count, 4, "lines of kubectl");
}

/// Whether these words are a command; one that leads nowhere ends the test.
fn is_sound(words: &[&str], all: &[(String, Value)], typed: &str) -> bool {
    let set = set(all);
    match words {
        ["apply", "-f", path] => assert!(Path::new(ROOT).join(path).exists(), "{typed}"),
        ["exec", pod, "-c", container, "--", "stekctl", asked @ ..] => {
            let (name, number) = pod.rsplit_once('-').unwrap();
            assert_eq!(set["metadata"]["name"], name, "{typed}");
            assert!(number.parse::<u64>().unwrap() < set["spec"]["replicas"].as_u64().unwrap());
            assert!(containers(set).iter().any(|one| one["name"] == *container), "{typed}");
            assert!(is_taken(asked), "{typed}");
        }
        ["create", "secret", "generic", name, files @ ..] => {
            let secret = one(all, "Secret", name);
            let given = files.iter().map(|word| word.strip_prefix("--from-file=").unwrap());
            let keys = secret["stringData"].as_mapping().unwrap().keys().map(text);
            assert_eq!(given.collect::<BTreeSet<_>>(), keys.collect(), "{typed}");
        }
        _ => panic!("no test looks at 'kubectl {typed}'"),
    }
    true
}
