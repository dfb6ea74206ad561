'''Five Traffic Servers with stek_share share one TLS session ticket key.

One self-signed certificate serves as root, as server and as client certificate of all servers, as in
the configurations that the plugin has to go on accepting.
'''
import os

Test.Summary = __doc__.splitlines()[0]

SERVERS = 5
SUBJECT = "/C=US/ST=IL/O=Yahoo/OU=Edge/CN=stek-share"
# What operators' tests look for in traffic.out.
INITIAL_KEY = r"Generate initial STEK succeeded"
# What a server says when keys that the group agreed on stand in its ticket context. The first group
# of the expression is the current key's fingerprint.
AGREED_KEY = r"installed \d+ keys?, current ([0-9a-f]{8}) \(generation [1-9]"

cert, key = Test.MakeCertificate("stek_share", SUBJECT)
origin = Test.MakeOrigin("origin", "hello from the origin")
peer_ports = [Test.FreePort() for _ in range(SERVERS)]

server_list = os.path.join(Test.RunDirectory, "server_list.yaml")
with open(server_list, "w") as file:
    for number, port in enumerate(peer_ports, start=1):
        file.write("- server_id: {}\n  address: 127.0.0.1\n  port: {}\n".format(number, port))

servers = []
for number, port in enumerate(peer_ports, start=1):
    conf = os.path.join(Test.RunDirectory, "server_conf_{}.yaml".format(number))
    with open(conf, "w") as file:
        file.write("\n".join([
            "server_id: {}".format(number),
            "address: 127.0.0.1",
            "port: {}".format(port),
            "asio_thread_pool_size: 4",
            "heart_beat_interval: 100",
            "election_timeout_lower_bound: 200",
            "election_timeout_upper_bound: 400",
            "reserved_log_items: 5",
            "snapshot_distance: 5",
            "client_req_timeout: 3000",
            # No rotation during the test: every ticket has to resume at the first attempt.
            "key_update_interval: 3600",
            "server_list_file: " + server_list,
            "root_cert_file: " + cert,
            "server_cert_file: " + cert,
            "server_key_file: " + key,
            "cert_verify_str: " + SUBJECT]) + "\n")
    server = Test.MakeServer("server{}".format(number), cert, key, origin, [
        "proxy.config.diags.debug.enabled INT 1",
        "proxy.config.diags.debug.tags STRING stek_share",
    ], "stek_share.so " + conf)
    servers.append(server)

curl = Test.AddTestRun("every server starts, all agree on one key, curl through server 1")
curl.Processes.Default.Command = (
    "curl --silent --show-error --fail --insecure https://127.0.0.1:{}/".format(
        servers[0].Variables.Port))
curl.Processes.Default.ReturnCode = 0
curl.Processes.Default.Streams.stdout = Testers.ContainsExpression(
    "hello from the origin", "the origin's page")
# One after another, each with its own key before the next one starts, and the client after the
# last one and the agreement; each step has the time that MakeServer gives a server to start.
servers[0].StartBefore(origin)
for server, following in zip(servers, servers[1:]):
    following.StartBefore(
        server, ready=When.FilesContain([server.Variables.Logs[0]], INITIAL_KEY))
curl.Processes.Default.StartBefore(
    servers[-1], ready=When.SameLastMatch([server.Variables.Logs for server in servers], AGREED_KEY))
for server in servers:
    server.Disk.File(server.Variables.Logs[0]).Content = Testers.ContainsExpression(
        INITIAL_KEY, "the line that operators' tests look for")

runs = [curl, Test.TakeTicket(servers[0], "ticket.pem")]
runs += [Test.OfferTicket(server, "ticket.pem") for server in servers]
for run in runs:
    for server in servers:
        run.StillRunningAfter += server
