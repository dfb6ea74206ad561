// A host for the plugin that is no Traffic Server: it exports the plugin API either under the
// mangled C++ names, as 10 and later do, or (with -DC_NAMES) under the C names, as 9.2 does, and
// never both. It loads the plugin, lives through a short life, and prints what it was asked to do,
// one line each, so that the test can read the order. It never prints a byte of a key.
//
//   host PLUGIN.so [argument ...]
//
// HOST_TWICE=1        calls TSPluginInit twice, as two lines of plugin.config do
// HOST_CLOSE=1        gives the plugin back with dlclose while it runs, loads it again, and goes on
// HOST_REFUSES=N      refuses the first N ticket key updates
// HOST_KEYS=0         does not wait for keys, which will not come
// HOST_DEBUG=N        proxy.config.diags.debug.enabled (default 1)
// HOST_MESSAGE=W      sends the message W, once without and once with a NUL behind it, then others
// HOST_FILE=F HOST_FILE_BECOMES=G   puts G in the place of F before that
// HOST_TICKET_FILE=F  proxy.config.ssl.server.ticket_key.filename
// HOST_VERSION=V      Traffic Server's version, if it is to be another one than 9.2.9 or 10.2.0
// HOST_TLS=DIR        makes TLS handshakes with cert.pem and key.pem of DIR, the plugin's hook in them
#include <dlfcn.h>
#include <openssl/ssl.h>
#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#ifdef C_NAMES
#define API extern "C"
#else
#define API
#endif

#ifdef BORING_SSL
// As one that is linked with BoringSSL: its names are found before those of libcrypto.
extern "C" const char *
OpenSSL_version(int)
{
  return "BoringSSL";
}
extern "C" unsigned long
OpenSSL_version_num()
{
  return 0x1010107f;
}
#endif

struct TSPluginRegistrationInfo {
  const char *plugin_name;
  const char *vendor_name;
  const char *support_email;
};
struct tsapi_cont;
struct tsapi_mutex;
enum TSReturnCode { TS_ERROR = -1, TS_SUCCESS = 0 };
struct TSPluginMsg {
  const char *tag;
  const void *data;
  size_t data_size;
};
enum TSEvent {
  TS_EVENT_LIFECYCLE_PORTS_INITIALIZED = 60100,
  TS_EVENT_LIFECYCLE_MSG               = 60105,
  TS_EVENT_LIFECYCLE_SHUTDOWN          = 60107,
  TS_EVENT_SSL_CLIENT_HELLO            = 60207,
};
enum TSLifecycleHookID { PORTS_INITIALIZED = 0, MSG = 5, SHUTDOWN = 7 };
#ifdef C_NAMES
enum TSHttpHookID { TS_SSL_CLIENT_HELLO_HOOK = 19 };
#else
enum TSHttpHookID { TS_SSL_CLIENT_HELLO_HOOK = 22 };
#endif
enum TSRecordDataType { RECORD_NULL, RECORD_INT };
enum TSStatPersistence { STAT_PERSISTENT = 1, STAT_NON_PERSISTENT };
enum TSStatSync { STAT_SYNC_SUM };
using Handler = int (*)(tsapi_cont *, TSEvent, void *);

struct tsapi_cont {
  Handler handler;
};

struct tsapi_ssl_obj;

namespace
{
// What the plugin takes for a connection of the host's.
struct Connection {
  SSL *ssl   = nullptr;
  int removed = 0;
};

std::vector<tsapi_cont *> hello_hooks;
std::mutex lock;
std::condition_variable changed;
int refusals_left                              = 0;
int accepted                                   = 0;
int answers                                    = 0;
std::multimap<TSLifecycleHookID, tsapi_cont *> hooks;
std::map<std::string, int> stats;

int
number(const char *variable, int otherwise)
{
  const char *text = getenv(variable);
  return text != nullptr ? atoi(text) : otherwise;
}

void
say(const char *format, ...)
{
  char line[8192];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(line, sizeof line, format, arguments);
  va_end(arguments);
  std::lock_guard<std::mutex> guard(lock);
  printf("%s\n", line);
  fflush(stdout);
  // The one line that ends the answer to a reload, not the one that says who ordered it.
  if (strstr(line, "[stek_share] reload: ") != nullptr && strstr(line, "reload: ordered by ") == nullptr) {
    ++answers;
    changed.notify_all();
  }
}

void
log_line(const char *level, const char *format, va_list arguments)
{
  char line[8192];
  vsnprintf(line, sizeof line, format, arguments);
  say("%s: %s", level, line);
}
} // namespace

#define LOG_FUNCTION(name, level)       \
  API void name(const char *format, ...) \
  {                                     \
    va_list arguments;                  \
    va_start(arguments, format);        \
    log_line(level, format, arguments); \
    va_end(arguments);                  \
  }

LOG_FUNCTION(TSNote, "NOTE")
LOG_FUNCTION(TSWarning, "WARNING")
LOG_FUNCTION(TSError, "ERROR")

API TSReturnCode
TSPluginRegister(const TSPluginRegistrationInfo *info)
{
  say("registered %s", info->plugin_name);
  return TS_SUCCESS;
}

API TSReturnCode
TSSslTicketKeyUpdate(char *data, int length)
{
  char thread[16] = "";
  pthread_getname_np(pthread_self(), thread, sizeof thread);
  bool whole = data != nullptr && length > 0 && length % 48 == 0;
  bool takes;
  {
    std::lock_guard<std::mutex> guard(lock);
    takes = whole && refusals_left == 0;
    if (takes) {
      ++accepted;
    } else if (refusals_left > 0) {
      --refusals_left;
    }
    printf("%s %d key(s) on thread %s\n", takes ? "took" : "refused", length / 48, thread);
    fflush(stdout);
  }
  changed.notify_all();
  return takes ? TS_SUCCESS : TS_ERROR;
}

API tsapi_cont *
TSContCreate(Handler handler, tsapi_mutex *mutex)
{
  say("continuation %s", mutex == nullptr ? "without a mutex" : "with a mutex");
  return new tsapi_cont{handler};
}

API void
TSLifecycleHookAdd(TSLifecycleHookID hook, tsapi_cont *cont)
{
  hooks.emplace(hook, cont);
}

API const char *
TSInstallDirGet()
{
  return "/nowhere/install";
}

API const char *
TSConfigDirGet()
{
  return "/nowhere/config";
}

API const char *
TSTrafficServerVersionGet()
{
  const char *version = getenv("HOST_VERSION");
#ifdef C_NAMES
  return version != nullptr ? version : "9.2.9";
#else
  return version != nullptr ? version : "10.2.0";
#endif
}

API void
TSHttpHookAdd(TSHttpHookID hook, tsapi_cont *cont)
{
  say("hook at a ClientHello: %s", hook == TS_SSL_CLIENT_HELLO_HOOK ? "right" : "wrong");
  hello_hooks.push_back(cont);
}

API tsapi_ssl_obj *
TSVConnSslConnectionGet(tsapi_cont *connection)
{
  return reinterpret_cast<tsapi_ssl_obj *>(reinterpret_cast<Connection *>(connection)->ssl);
}

API void
TSVConnReenable(tsapi_cont *connection)
{
  ++reinterpret_cast<Connection *>(connection)->removed;
}

API TSReturnCode
TSMgmtStringGet(const char *record, char **value)
{
  const char *file = getenv("HOST_TICKET_FILE");
  if (file == nullptr || strcmp(record, "proxy.config.ssl.server.ticket_key.filename") != 0) {
    return TS_ERROR;
  }
  *value = strdup(file);
  say("given away");
  return TS_SUCCESS;
}

API TSReturnCode
TSMgmtIntGet(const char *record, long *value)
{
  if (strcmp(record, "proxy.config.ssl.server.session_ticket.enable") != 0) {
    return TS_ERROR;
  }
  *value = number("HOST_TICKETS", 1);
  return TS_SUCCESS;
}

API TSReturnCode
TSStatFindName(const char *name, int *id)
{
  auto found = stats.find(name);
  if (found == stats.end()) {
    return TS_ERROR;
  }
  *id = found->second;
  return TS_SUCCESS;
}

API int
TSStatCreate(const char *name, TSRecordDataType type, TSStatPersistence persistence, TSStatSync sync)
{
  if (type != RECORD_INT || persistence != STAT_NON_PERSISTENT || sync != STAT_SYNC_SUM || stats.count(name) != 0) {
    abort();
  }
  int id      = static_cast<int>(stats.size());
  stats[name] = id;
  say("made %s", name);
  return id;
}

API void
TSStatIntSet(int id, int64_t value)
{
  for (const auto &stat : stats) {
    if (stat.second == id) {
      say("stat %s %ld", stat.first.c_str(), static_cast<long>(value));
    }
  }
}

#ifdef C_NAMES

API void
_TSfree(void *pointer)
{
  say("freed");
  free(pointer);
}

API int
TSIsDebugTagSet(const char *tag)
{
  return number("HOST_DEBUG", 1) != 0 && strcmp(tag, "stek_share") == 0;
}

API void
TSDebug(const char *tag, const char *format, ...)
{
  char line[8192];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(line, sizeof line, format, arguments);
  va_end(arguments);
  say("DEBUG: (%s) %s", tag, line);
}

#else

void
TSfree(void *pointer)
{
  say("freed");
  free(pointer);
}

class DbgCtl
{
public:
  using TagData = std::pair<const char *const, bool>;
  static void print(const char *tag, const char *file, const char *function, int line, const char *format, ...);
  static const TagData *_new_reference(const char *tag);
  static bool _override_global_on();
  static std::atomic<int> _config_mode;
};

std::atomic<int> DbgCtl::_config_mode{0};

void
DbgCtl::print(const char *tag, const char *, const char *, int, const char *format, ...)
{
  char line[8192];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(line, sizeof line, format, arguments);
  va_end(arguments);
  say("DEBUG: (%s) %s", tag, line);
}

const DbgCtl::TagData *
DbgCtl::_new_reference(const char *tag)
{
  static const TagData ours{"stek_share", true}, other{"other", false};
  return strcmp(tag, "stek_share") == 0 ? &ours : &other;
}

bool
DbgCtl::_override_global_on()
{
  return getenv("HOST_OVERRIDE") != nullptr;
}

#endif

namespace
{
void
fire(TSLifecycleHookID hook, TSEvent event, void *data = nullptr)
{
  auto start = std::chrono::steady_clock::now();
  auto range = hooks.equal_range(hook);
  for (auto at = range.first; at != range.second; ++at) {
    at->second->handler(at->second, event, data);
  }
  auto took = std::chrono::steady_clock::now() - start;
  say("hook %d took %ld ms", hook, static_cast<long>(std::chrono::duration_cast<std::chrono::milliseconds>(took).count()));
}

// Sends one message and, if it is a reload to the plugin, waits for its answer.
void
send(const char *tag, const void *data, size_t size, bool answered)
{
  TSPluginMsg message{tag, data, size};
  int before;
  {
    std::lock_guard<std::mutex> guard(lock);
    before = answers;
  }
  fire(MSG, TS_EVENT_LIFECYCLE_MSG, &message);
  std::unique_lock<std::mutex> guard(lock);
  if (answered && !changed.wait_for(guard, std::chrono::seconds(60), [before] { return answers > before; })) {
    printf("no answer came\n");
  }
}

void
send_all(const char *word)
{
  const char *file = getenv("HOST_FILE"), *becomes = getenv("HOST_FILE_BECOMES");
  if (file != nullptr && becomes != nullptr) {
    std::filesystem::rename(becomes, file);
  }
  send("stek_share", word, strlen(word), true);
  send("stek_share", word, strlen(word) + 1, true);
  send("another", word, strlen(word), false);
  send("stek_share", nullptr, 0, false);
  send("stek_share", "no such word", 12, false);
  std::string much(100000, 'x');
  send("stek_share", much.data(), much.size(), false);
}

int
at_hello(SSL *, int *, void *connection)
{
  for (tsapi_cont *cont : hello_hooks) {
    cont->handler(cont, TS_EVENT_SSL_CLIENT_HELLO, connection);
  }
  return SSL_CLIENT_HELLO_SUCCESS;
}

SSL_SESSION *latest = nullptr;

int
keep(SSL *, SSL_SESSION *session)
{
  SSL_SESSION_free(latest);
  latest = session;
  return 1;
}

// One connection to `name`, with the session of an earlier one or without.
void
connect_to(SSL_CTX *server, SSL_CTX *client, const char *name, SSL_SESSION *session, const char *what)
{
  Connection connection;
  SSL *there = SSL_new(client);
  BIO *near = nullptr, *far = nullptr;
  connection.ssl = SSL_new(server);
  BIO_new_bio_pair(&near, 0, &far, 0);
  SSL_set_bio(there, near, near);
  SSL_set_bio(connection.ssl, far, far);
  SSL_set_connect_state(there);
  SSL_set_accept_state(connection.ssl);
  SSL_set_tlsext_host_name(there, name);
  if (session != nullptr) {
    // A copy, since OpenSSL uses a session of TLS 1.3 once.
    SSL_SESSION *copy = SSL_SESSION_dup(session);
    SSL_set_session(there, copy);
    SSL_SESSION_free(copy);
  }
  SSL_CTX_set_client_hello_cb(server, at_hello, &connection);
  char byte;
  for (int i = 0; i < 10; ++i) {
    SSL_do_handshake(there);
    SSL_do_handshake(connection.ssl);
    SSL_read(there, &byte, 1);
  }
  bool done = SSL_is_init_finished(there) && SSL_is_init_finished(connection.ssl);
  say("TLS to %s %s: %s, went on %d time(s)", name, what,
      !done ? "failed" : (SSL_session_reused(there) ? "resumed" : "in full"), connection.removed);
  // Without a word of leadership transfer OpenSSL would not resume the session.
  SSL_shutdown(there);
  SSL_shutdown(connection.ssl);
  SSL_free(there);
  SSL_free(connection.ssl);
}

void
make_handshakes(const std::string &dir)
{
  SSL_CTX *server = SSL_CTX_new(TLS_server_method()), *client = SSL_CTX_new(TLS_client_method());
  SSL_CTX_use_certificate_file(server, (dir + "/cert.pem").c_str(), SSL_FILETYPE_PEM);
  SSL_CTX_use_PrivateKey_file(server, (dir + "/key.pem").c_str(), SSL_FILETYPE_PEM);
  SSL_CTX_set_session_id_context(server, reinterpret_cast<const unsigned char *>("host"), 4);
  SSL_CTX_set_session_cache_mode(client, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
  SSL_CTX_sess_set_new_cb(client, keep);
  connect_to(server, client, "a.test", nullptr, "at first");
  SSL_SESSION *first = latest;
  latest             = nullptr;
  connect_to(server, client, "a.test", first, "again");
  connect_to(server, client, "A.TEST.", first, "in other letters");
  connect_to(server, client, "b.test", first, "with another's session");
  SSL_SESSION_free(first);
  SSL_SESSION_free(latest);
  SSL_CTX_free(server);
  SSL_CTX_free(client);
}

// The names of all threads but the first one, each after a blank.
std::string
others()
{
  std::string names;
  for (const auto &task : std::filesystem::directory_iterator("/proc/self/task")) {
    std::string name;
    if (task.path().filename() != std::to_string(getpid()) && std::getline(std::ifstream(task.path() / "comm"), name)) {
      names += " " + name;
    }
  }
  return names;
}
} // namespace

int
main(int argc, char **argv)
{
  refusals_left = number("HOST_REFUSES", 0);
#ifndef C_NAMES
  DbgCtl::_config_mode = number("HOST_DEBUG", 1);
#endif
  bool plain = dlsym(RTLD_DEFAULT, "TSPluginRegister") != nullptr;
  bool cxx   = dlsym(RTLD_DEFAULT, "_Z16TSPluginRegisterPK24TSPluginRegistrationInfo") != nullptr;
  say("names: %s%s", plain ? "C" : "", cxx ? "C++" : "");

  void *plugin = argc > 1 ? dlopen(argv[1], RTLD_NOW) : nullptr;
  if (plugin == nullptr) {
    say("dlopen: %s", argc > 1 ? dlerror() : "no plugin given");
    return 70;
  }
  auto init = reinterpret_cast<void (*)(int, char **)>(dlsym(plugin, "TSPluginInit"));
  if (init == nullptr) {
    say("dlsym: %s", dlerror());
    return 70;
  }
  for (int i = 0; i <= number("HOST_TWICE", 0); ++i) {
    init(argc - 1, argv + 1);
    say("TSPluginInit returned");
  }
  fire(PORTS_INITIALIZED, TS_EVENT_LIFECYCLE_PORTS_INITIALIZED);
  const char *word = getenv("HOST_MESSAGE");
  if (word != nullptr) {
    send_all(word);
  }
  const char *tls = getenv("HOST_TLS");
  if (tls != nullptr) {
    make_handshakes(tls);
  }
  if (!hooks.empty() && number("HOST_KEYS", 1) != 0) {
    std::unique_lock<std::mutex> guard(lock);
    if (!changed.wait_for(guard, std::chrono::seconds(60), [] { return accepted > 0; })) {
      printf("no keys came\n");
    }
  }
  if (number("HOST_CLOSE", 0) != 0) {
    say("dlclose: %d", dlclose(plugin));
    // The plugin's threads are in its code now. Were it unmapped, they would crash at once.
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    say("threads while closed: %s", others().empty() ? "none" : "some");
    say("mapped while closed: %s", dlopen(argv[1], RTLD_NOW | RTLD_NOLOAD) != nullptr ? "yes" : "no");
    plugin = dlopen(argv[1], RTLD_NOW);
    init   = reinterpret_cast<void (*)(int, char **)>(dlsym(plugin, "TSPluginInit"));
    init(argc - 1, argv + 1);
    say("TSPluginInit returned again");
  }
  fire(SHUTDOWN, TS_EVENT_LIFECYCLE_SHUTDOWN);
  // The last thread of the plugin may still be on its way out.
  std::string left = others();
  for (int i = 0; i < 3000 && !left.empty(); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    left = others();
  }
  say("threads left:%s", left.empty() ? " none" : left.c_str());
  return 0;
}
