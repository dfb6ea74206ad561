/*
 * What stek_share needs of Traffic Server, as plain C functions of our own.
 *
 * One binary serves two hosts: 9.2 exports its plugin API under C names, 10 and later under
 * mangled C++ names. ats.c imports both weakly and takes whichever the host has. Under a host that
 * has neither (a test program) lines go to stderr, and every other call says that it failed.
 *
 * bindgen reads this header. Nothing here is part of Traffic Server's own headers.
 */
#ifndef STEK_SHARE_ATS_H
#define STEK_SHARE_ATS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A continuation of the host; never looked into. */
struct tsapi_cont;

/* Called by the host with the continuation, the event's number and the event's data. */
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
 * which plugin it is. The data need not end in a NUL. */
struct stek_ats_msg {
    const char *tag;
    const void *data;
    size_t data_size;
};

/* TSPluginRegister, and on 10+ the debug control for the tag `name`. The strings are copied by the
 * host or must live for ever: give string literals. */
bool stek_ats_register(const char *name, const char *vendor, const char *email);

/* TSNote, TSWarning, TSError with the fixed format "%s". */
void stek_ats_note(const char *line);
void stek_ats_warning(const char *line);
void stek_ats_error(const char *line);

/* Whether lines for the debug tag `tag` are wanted now. `tag` counts on 9.2 only; on 10+ it is the
 * name given to stek_ats_register, before which the answer is no. */
bool stek_ats_debug_on(const char *tag);

/* TSDebug, or DbgCtl::print on 10+. Ask stek_ats_debug_on first: 10+ prints without asking. */
void stek_ats_debug(const char *tag, const char *line);

/* TSSslTicketKeyUpdate: `len` / 48 keys, the encrypting one first. The host copies them and does
 * not write to `data`. One thread only. */
bool stek_ats_ticket_key_update(char *data, int len);

/* TSLifecycleHookAdd with a new continuation without a mutex, which is what these hooks want. */
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
 * lacks one of the functions that the handler needs. */
bool stek_ats_on_client_hello(enum stek_ats_hello_hook hook, stek_ats_handler handler);

/* TSVConnSslConnectionGet: the connection's SSL, OpenSSL's structure; NULL if it has none. */
void *stek_ats_ssl(void *connection);

/* TSVConnReenable: lets the handshake go on, which waits at the hook. */
void stek_ats_reenable(void *connection);

/* TSInstallDirGet, TSConfigDirGet, TSTrafficServerVersionGet. NULL if the host cannot say; the
 * string belongs to the host and stays. */
const char *stek_ats_install_dir(void);
const char *stek_ats_config_dir(void);
const char *stek_ats_version(void);

/* TSMgmtStringGet. NULL if there is no such record or it is unset. Give the answer to
 * stek_ats_free. */
char *stek_ats_mgmt_string(const char *record);
void stek_ats_free(char *string);

/* TSMgmtIntGet. False if there is no such record. */
bool stek_ats_mgmt_int(const char *record, int64_t *value);

/* TSStatFindName, else TSStatCreate (integer, not persistent, summed). Negative if neither works.
 * Creating one name twice makes the host assert, hence the order. */
int stek_ats_stat(const char *name);

/* TSStatIntSet, which is allowed on every thread. */
void stek_ats_stat_set(int stat, int64_t value);

#endif
