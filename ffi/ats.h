/*
 * What stek_share needs of Traffic Server, as plain C functions of our own.
 *
 * One binary serves two hosts: 9.2 exports its plugin API under C names, 10 and later under
 * mangled C++ names. ats.c imports both weakly and takes whichever the host has. Under a host that
 * has neither (a test program) lines go to stderr, and every other call says that it failed.
 *
 * bindgen reads this header. Nothing here is part of Traffic Server's own headers.
 *
 * Who owns what, unless a function says otherwise:
 *  - What the caller hands over stays the caller's, and has to live until the call returns.
 *  - What a handler is given (continuation, connection, message) is the host's. It is lent until
 *    the handler returns; a connection until stek_ats_reenable, if that is earlier.
 *  - A continuation is the host's and lives as long as the process; so must its handler, which is
 *    why this library is never unmapped.
 * On which thread: TSPluginInit runs on the host's main thread before it serves anybody, a lifecycle
 * handler on whichever thread of the host, a hello handler on the event thread of its connection,
 * several at once. "Any" is any of those and all of the plugin's own.
 */
#ifndef STEK_SHARE_ATS_H
#define STEK_SHARE_ATS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A continuation of the host; never looked into, never freed. */
struct tsapi_cont;

/* Called by the host with the continuation, the event's number and the event's data, all lent. */
typedef int (*stek_ats_handler)(struct tsapi_cont *cont, int event, void *data);

/* The lifecycle hooks in use, by the host's numbers (TSLifecycleHookID). */
enum stek_ats_hook {
    STEK_ATS_PORTS_INITIALIZED = 0,
    STEK_ATS_MSG = 5,
    STEK_ATS_SHUTDOWN = 7,
};

/* The number of a lifecycle hook's event is this plus the hook's number (TSEvent). */
enum { STEK_ATS_LIFECYCLE_EVENTS = 60100 };

/* The data of the event STEK_ATS_MSG (TSPluginMsg): a message of the operator. The tag says for
 * which plugin it is, and ends in a NUL. The data need not. Structure, tag and data are the host's,
 * which frees them when the handlers have returned: copy what is to be kept. */
struct stek_ats_msg {
    const char *tag;
    const void *data;
    size_t data_size;
};

/* TSPluginRegister, and on 10+ the debug control for the tag `name`, which is the host's, kept for
 * ever and never given back. The host copies the strings or keeps them: give string literals.
 * Thread: TSPluginInit. */
bool stek_ats_register(const char *name, const char *vendor, const char *email);

/* TSNote, TSWarning, TSError with the fixed format "%s". The line is copied. Thread: any. */
void stek_ats_note(const char *line);
void stek_ats_warning(const char *line);
void stek_ats_error(const char *line);

/* Whether lines for the debug tag `tag` are wanted now. `tag` counts on 9.2 only; on 10+ it is the
 * name given to stek_ats_register, before which the answer is no. Thread: any. */
bool stek_ats_debug_on(const char *tag);

/* TSDebug, or DbgCtl::print on 10+. Ask stek_ats_debug_on first: 10+ prints without asking.
 * Both strings are copied. Thread: any. */
void stek_ats_debug(const char *tag, const char *line);

/* TSSslTicketKeyUpdate: `len` / 48 keys, the encrypting one first. The host copies them and does
 * not write to `data`, which the caller erases. It frees its copy some time after the next call.
 * Thread: one, always the same or the next only after the last call; never while the host sets up
 * its own keys, from the return of TSPluginInit to PORTS_INITIALIZED. */
bool stek_ats_ticket_key_update(char *data, int len);

/* TSLifecycleHookAdd with a new continuation without a mutex, which is what these hooks want.
 * Thread: TSPluginInit; on another one the host crashes. */
bool stek_ats_on_lifecycle(enum stek_ats_hook hook, stek_ats_handler handler);

/* The hook at each ClientHello, before OpenSSL decides about resumption, by the host's numbers
 * (TSHttpHookID, TS_SSL_CLIENT_HELLO_HOOK). They differ from one version to another. */
enum stek_ats_hello_hook {
    STEK_ATS_CLIENT_HELLO_9 = 19,
    STEK_ATS_CLIENT_HELLO_10 = 22,
};

/* The number of its event (TS_EVENT_SSL_CLIENT_HELLO), the same in all versions. Its data is the
 * connection. */
enum { STEK_ATS_CLIENT_HELLO_EVENT = 60207 };

/* TSHttpHookAdd with a new continuation without a mutex. False, and nothing added, where the host
 * lacks one of the functions that the handler needs. Thread: TSPluginInit. */
bool stek_ats_on_client_hello(enum stek_ats_hello_hook hook, stek_ats_handler handler);

/* TSVConnSslConnectionGet: the connection's SSL, OpenSSL's structure; NULL if it has none. It is
 * the connection's, without a reference of our own: do not free it. Thread: the handler's. */
void *stek_ats_ssl(void *connection);

/* TSVConnReenable: lets the handshake go on, which waits at the hook. Once for each event; then the
 * connection and its SSL may be gone. Thread: the handler's. */
void stek_ats_reenable(void *connection);

/* The id of a session of TLS 1.2 (TSSslSessionID): the same layout in all versions that have it. */
struct stek_ats_session_id {
    size_t len;
    char bytes[32];
};

/* The hook at what becomes of such a session, by the host's numbers (TSHttpHookID,
 * TS_SSL_SESSION_HOOK). 9 and 10 have it; 11 has not. */
enum stek_ats_session_hook {
    STEK_ATS_SESSION_9 = 24,
    STEK_ATS_SESSION_10 = 27,
};

/* The numbers of its events (TS_EVENT_SSL_SESSION_NEW, _REMOVE), the same in all versions. Their data
 * is the id, which is lent. */
enum {
    STEK_ATS_SESSION_NEW_EVENT = 2001,
    STEK_ATS_SESSION_REMOVE_EVENT = 2002,
};

/* TSHttpHookAdd with a new continuation without a mutex. False, and nothing added, where the host
 * lacks one of the functions for sessions. Thread: TSPluginInit. */
bool stek_ats_on_session(enum stek_ats_session_hook hook, stek_ats_handler handler);

/* TSThreadInit: the calling thread may call the functions below from now on, which count in the
 * host's statistics. What the host makes for it stays for ever. False if the host cannot. */
bool stek_ats_thread_init(void);

/* TSSslSessionGetBuffer: copies the session as i2d_SSL_SESSION writes it to `buffer`, which the caller
 * erases; how many bytes it has, of which `len` at most were copied. 0 if the host has no such
 * session, or if session_cache.skip_cache_on_bucket_contention is 1 and it was busy. Takes the
 * host's lock of one part of its cache for as long as the copy takes. Thread: of the host's, or one
 * of ours after stek_ats_thread_init. */
int stek_ats_session_bytes(const struct stek_ats_session_id *id, char *buffer, int len);

/* TSSslSessionInsert without a connection. `session` is OpenSSL's SSL_SESSION, of which the host keeps
 * a copy as bytes; it stays the caller's. Calls no hook. One that is there already stays. Thread: as
 * above. */
bool stek_ats_session_insert(const struct stek_ats_session_id *id, void *session);

/* TSSslSessionRemove. Calls no hook. Thread: as above. */
bool stek_ats_session_remove(const struct stek_ats_session_id *id);

/* TSInstallDirGet, TSConfigDirGet, TSTrafficServerVersionGet. NULL if the host cannot say; the
 * string belongs to the host and stays for ever. Thread: any, after TSPluginInit has begun. */
const char *stek_ats_install_dir(void);
const char *stek_ats_config_dir(void);
const char *stek_ats_version(void);

/* TSMgmtStringGet. NULL if there is no such record or it is unset. The answer is a copy of the
 * caller's own, from the host's allocator: give it to stek_ats_free, once, and to no other free.
 * Thread: any. */
char *stek_ats_mgmt_string(const char *record);
void stek_ats_free(char *string);

/* TSMgmtIntGet, into `*value`, which is the caller's. False if there is no such record.
 * Thread: any. */
bool stek_ats_mgmt_int(const char *record, int64_t *value);

/* TSMgmtUpdateRegister: `handler` is called after each 'traffic_ctl config reload', with a continuation of
 * its own and no data. The name is copied. False if the host has no such function. Thread: TSPluginInit;
 * the handler runs on one of the host's threads for tasks, or an event thread where there is none. */
bool stek_ats_on_config_reload(const char *name, stek_ats_handler handler);

/* The value of one of the host's own metrics, into `*value`, which is the caller's: TSMgmtIntGet or
 * TSMgmtCounterGet in 9.2, TSStatFindName and TSStatIntGet from 10 on. False if there is no such
 * metric. Thread: any. */
bool stek_ats_metric(const char *name, int64_t *value);

/* TSStatFindName, else TSStatCreate (integer, not persistent, summed). Negative if neither works.
 * Creating one name twice makes the host assert, hence the order. The name is copied; the statistic
 * stays for ever. Thread: TSPluginInit. */
int stek_ats_stat(const char *name);

/* TSStatIntSet. Nothing for a negative `stat`. Thread: any. */
void stek_ats_stat_set(int stat, int64_t value);

#endif
