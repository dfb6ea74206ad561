/*
 * Finds Traffic Server's functions under their C names (9.2) or their mangled C++ names (10+) and
 * offers them under ours; see ats.h for what each does.
 *
 * Weak imports leave the search to the dynamic linker: what the host does not export is NULL, and a
 * program that is no Traffic Server still links and runs. A strong import under either kind of name
 * would stop the other host at start.
 */
#include "ats.h"

#include <stddef.h>
#include <stdio.h>

struct tsapi_mutex;

/* The host's structure of the same name: three pointers in this order on all versions. */
struct TSPluginRegistrationInfo {
    const char *plugin_name;
    const char *vendor_name;
    const char *support_email;
};

/* Values of the host's enumerations; the same in 9.2, 10 and master. */
enum { HOST_SUCCESS = 0 };
enum { HOST_INT = 1 };            /* TS_RECORDDATATYPE_INT */
enum { HOST_NON_PERSISTENT = 2 }; /* TS_STAT_NON_PERSISTENT */
enum { HOST_SYNC_SUM = 0 };       /* TS_STAT_SYNC_SUM */

/* Declares `name` as 9.2 exports it and `cxx_name` as 10+ does, both possibly absent. */
#define IMPORT(result, name, mangled, ...)                                                        \
    extern result name(__VA_ARGS__) __attribute__((weak));                                        \
    extern result cxx_##name(__VA_ARGS__) __asm__(mangled) __attribute__((weak))

/* The function under the name that this host has, or NULL. */
#define HOST(name) (name != NULL ? name : cxx_##name)

IMPORT(int, TSPluginRegister, "_Z16TSPluginRegisterPK24TSPluginRegistrationInfo",
       const struct TSPluginRegistrationInfo *);
IMPORT(void, TSNote, "_Z6TSNotePKcz", const char *, ...);
IMPORT(void, TSWarning, "_Z9TSWarningPKcz", const char *, ...);
IMPORT(void, TSError, "_Z7TSErrorPKcz", const char *, ...);
IMPORT(int, TSSslTicketKeyUpdate, "_Z20TSSslTicketKeyUpdatePci", char *, int);
IMPORT(struct tsapi_cont *, TSContCreate,
       "_Z12TSContCreatePFiP10tsapi_cont7TSEventPvEP11tsapi_mutex", stek_ats_handler,
       struct tsapi_mutex *);
IMPORT(void, TSLifecycleHookAdd, "_Z18TSLifecycleHookAdd17TSLifecycleHookIDP10tsapi_cont", int,
       struct tsapi_cont *);
IMPORT(void, TSHttpHookAdd, "_Z13TSHttpHookAdd12TSHttpHookIDP10tsapi_cont", int,
       struct tsapi_cont *);
IMPORT(void *, TSVConnSslConnectionGet, "_Z23TSVConnSslConnectionGetP10tsapi_cont", void *);
IMPORT(void, TSVConnReenable, "_Z15TSVConnReenableP10tsapi_cont", void *);
IMPORT(void *, TSThreadInit, "_Z12TSThreadInitv", void);
IMPORT(int, TSSslSessionGetBuffer, "_Z21TSSslSessionGetBufferPK14TSSslSessionIDPcPi",
       const struct stek_ats_session_id *, char *, int *);
IMPORT(int, TSSslSessionInsert,
       "_Z18TSSslSessionInsertPK14TSSslSessionIDP17tsapi_ssl_sessionP13tsapi_ssl_obj",
       const struct stek_ats_session_id *, void *, void *);
IMPORT(int, TSSslSessionRemove, "_Z18TSSslSessionRemovePK14TSSslSessionID",
       const struct stek_ats_session_id *);
IMPORT(const char *, TSInstallDirGet, "_Z15TSInstallDirGetv", void);
IMPORT(const char *, TSConfigDirGet, "_Z14TSConfigDirGetv", void);
IMPORT(const char *, TSTrafficServerVersionGet, "_Z25TSTrafficServerVersionGetv", void);
IMPORT(int, TSMgmtStringGet, "_Z15TSMgmtStringGetPKcPPc", const char *, char **);
IMPORT(int, TSMgmtIntGet, "_Z12TSMgmtIntGetPKcPl", const char *, int64_t *);
IMPORT(int, TSMgmtCounterGet, "_Z16TSMgmtCounterGetPKcPl", const char *, int64_t *);
IMPORT(void, _TSfree, "_Z6TSfreePv", void *);
IMPORT(int, TSStatFindName, "_Z14TSStatFindNamePKcPi", const char *, int *);
IMPORT(int, TSStatCreate, "_Z12TSStatCreatePKc16TSRecordDataType17TSStatPersistence10TSStatSync",
       const char *, int, int, int);
IMPORT(void, TSStatIntSet, "_Z12TSStatIntSetil", int, int64_t);
IMPORT(int64_t, TSStatIntGet, "_Z12TSStatIntGeti", int);

/* 9.2 has two arguments; of later ones some have a third, the file of the plugin. */
extern void TSMgmtUpdateRegister(struct tsapi_cont *, const char *) __attribute__((weak));
extern void update_register_2(struct tsapi_cont *, const char *)
    __asm__("_Z20TSMgmtUpdateRegisterP10tsapi_contPKc") __attribute__((weak));
extern void update_register_3(struct tsapi_cont *, const char *, const char *)
    __asm__("_Z20TSMgmtUpdateRegisterP10tsapi_contPKcS2_") __attribute__((weak));

/* Debug lines of 9.2. */
extern int TSIsDebugTagSet(const char *) __attribute__((weak));
extern void TSDebug(const char *, const char *, ...) __attribute__((weak));

/* Debug lines of 10+: static members of the class DbgCtl. A control is a pair of a tag and of
 * whether the configured expression matches it, which the host keeps up to date. */
struct debug_control {
    const char *tag;
    bool on;
};

extern const struct debug_control *dbg_new_reference(const char *)
    __asm__("_ZN6DbgCtl14_new_referenceEPKc") __attribute__((weak));
extern int dbg_config_mode __asm__("_ZN6DbgCtl12_config_modeE") __attribute__((weak));
extern bool dbg_override_global_on(void) __asm__("_ZN6DbgCtl19_override_global_onEv")
    __attribute__((weak));
extern void dbg_print(const char *, const char *, const char *, int, const char *, ...)
    __asm__("_ZN6DbgCtl5printEPKcS1_S1_iS1_z") __attribute__((weak));

/* Written once, in stek_ats_register, and never given back: the host's registry of controls may be
 * gone by the time a static destructor would run. */
static const struct debug_control *control;

bool stek_ats_register(const char *name, const char *vendor, const char *email)
{
    struct TSPluginRegistrationInfo info = {name, vendor, email};

    if (HOST(TSPluginRegister) == NULL || HOST(TSPluginRegister)(&info) != HOST_SUCCESS) {
        return false;
    }
    if (TSDebug == NULL && dbg_new_reference != NULL &&
        __atomic_load_n(&control, __ATOMIC_ACQUIRE) == NULL) {
        __atomic_store_n(&control, dbg_new_reference(name), __ATOMIC_RELEASE);
    }
    return true;
}

/* One log function: the host's, with a fixed format, or stderr. */
#define LOG_LINE(name, level)                                                                      \
    do {                                                                                           \
        if (HOST(name) != NULL) {                                                                  \
            HOST(name)("%s", line);                                                                \
        } else {                                                                                   \
            fprintf(stderr, "%s: %s\n", level, line);                                              \
        }                                                                                          \
    } while (0)

void stek_ats_note(const char *line)
{
    LOG_LINE(TSNote, "NOTE");
}

void stek_ats_warning(const char *line)
{
    LOG_LINE(TSWarning, "WARNING");
}

void stek_ats_error(const char *line)
{
    LOG_LINE(TSError, "ERROR");
}

bool stek_ats_debug_on(const char *tag)
{
    const struct debug_control *c = __atomic_load_n(&control, __ATOMIC_ACQUIRE);
    int mode;

    if (TSIsDebugTagSet != NULL) {
        return TSIsDebugTagSet(tag) != 0;
    }
    if (c == NULL || dbg_print == NULL || &dbg_config_mode == NULL) {
        return false;
    }
    /* proxy.config.diags.debug.enabled: 0 off, 1 and 3 on, 2 on for chosen clients only, which the
     * host decides thread by thread. */
    mode = __atomic_load_n(&dbg_config_mode, __ATOMIC_RELAXED);
    if (mode == 0 || !__atomic_load_n(&c->on, __ATOMIC_RELAXED)) {
        return false;
    }
    if ((mode & 1) != 0) {
        return true;
    }
    return mode == 2 && dbg_override_global_on != NULL && dbg_override_global_on();
}

void stek_ats_debug(const char *tag, const char *line)
{
    if (TSDebug != NULL) {
        TSDebug(tag, "%s", line);
    } else if (dbg_print != NULL) {
        dbg_print(tag, "stek_share", "log", 0, "%s", line);
    }
}

bool stek_ats_ticket_key_update(char *data, int len)
{
    return HOST(TSSslTicketKeyUpdate) != NULL &&
           HOST(TSSslTicketKeyUpdate)(data, len) == HOST_SUCCESS;
}

bool stek_ats_on_lifecycle(enum stek_ats_hook hook, stek_ats_handler handler)
{
    struct tsapi_cont *cont;

    if (HOST(TSContCreate) == NULL || HOST(TSLifecycleHookAdd) == NULL) {
        return false;
    }
    cont = HOST(TSContCreate)(handler, NULL);
    if (cont == NULL) {
        return false;
    }
    HOST(TSLifecycleHookAdd)((int)hook, cont);
    return true;
}

bool stek_ats_on_client_hello(enum stek_ats_hello_hook hook, stek_ats_handler handler)
{
    struct tsapi_cont *cont;

    if (HOST(TSContCreate) == NULL || HOST(TSHttpHookAdd) == NULL ||
        HOST(TSVConnSslConnectionGet) == NULL || HOST(TSVConnReenable) == NULL) {
        return false;
    }
    cont = HOST(TSContCreate)(handler, NULL);
    if (cont == NULL) {
        return false;
    }
    HOST(TSHttpHookAdd)((int)hook, cont);
    return true;
}

void *stek_ats_ssl(void *connection)
{
    return HOST(TSVConnSslConnectionGet) != NULL ? HOST(TSVConnSslConnectionGet)(connection) : NULL;
}

void stek_ats_reenable(void *connection)
{
    if (HOST(TSVConnReenable) != NULL) {
        HOST(TSVConnReenable)(connection);
    }
}

bool stek_ats_on_session(enum stek_ats_session_hook hook, stek_ats_handler handler)
{
    struct tsapi_cont *cont;

    if (HOST(TSContCreate) == NULL || HOST(TSHttpHookAdd) == NULL || HOST(TSThreadInit) == NULL ||
        HOST(TSSslSessionGetBuffer) == NULL || HOST(TSSslSessionInsert) == NULL ||
        HOST(TSSslSessionRemove) == NULL) {
        return false;
    }
    cont = HOST(TSContCreate)(handler, NULL);
    if (cont == NULL) {
        return false;
    }
    HOST(TSHttpHookAdd)((int)hook, cont);
    return true;
}

bool stek_ats_thread_init(void)
{
    return HOST(TSThreadInit) != NULL && HOST(TSThreadInit)() != NULL;
}

int stek_ats_session_bytes(const struct stek_ats_session_id *id, char *buffer, int len)
{
    return HOST(TSSslSessionGetBuffer) != NULL ? HOST(TSSslSessionGetBuffer)(id, buffer, &len) : 0;
}

bool stek_ats_session_insert(const struct stek_ats_session_id *id, void *session)
{
    return HOST(TSSslSessionInsert) != NULL &&
           HOST(TSSslSessionInsert)(id, session, NULL) == HOST_SUCCESS;
}

bool stek_ats_session_remove(const struct stek_ats_session_id *id)
{
    return HOST(TSSslSessionRemove) != NULL && HOST(TSSslSessionRemove)(id) == HOST_SUCCESS;
}

const char *stek_ats_install_dir(void)
{
    return HOST(TSInstallDirGet) != NULL ? HOST(TSInstallDirGet)() : NULL;
}

const char *stek_ats_config_dir(void)
{
    return HOST(TSConfigDirGet) != NULL ? HOST(TSConfigDirGet)() : NULL;
}

const char *stek_ats_version(void)
{
    return HOST(TSTrafficServerVersionGet) != NULL ? HOST(TSTrafficServerVersionGet)() : NULL;
}

char *stek_ats_mgmt_string(const char *record)
{
    char *value = NULL;

    if (HOST(TSMgmtStringGet) == NULL || HOST(TSMgmtStringGet)(record, &value) != HOST_SUCCESS) {
        return NULL;
    }
    return value;
}

void stek_ats_free(char *string)
{
    if (HOST(_TSfree) != NULL) {
        HOST(_TSfree)(string);
    }
}

bool stek_ats_mgmt_int(const char *record, int64_t *value)
{
    return HOST(TSMgmtIntGet) != NULL && HOST(TSMgmtIntGet)(record, value) == HOST_SUCCESS;
}

bool stek_ats_on_config_reload(const char *name, stek_ats_handler handler)
{
    struct tsapi_cont *cont;

    if (HOST(TSContCreate) == NULL || (TSMgmtUpdateRegister == NULL && update_register_2 == NULL &&
                                       update_register_3 == NULL)) {
        return false;
    }
    cont = HOST(TSContCreate)(handler, NULL);
    if (cont == NULL) {
        return false;
    }
    if (TSMgmtUpdateRegister != NULL) {
        TSMgmtUpdateRegister(cont, name);
    } else if (update_register_2 != NULL) {
        update_register_2(cont, name);
    } else {
        update_register_3(cont, name, NULL);
    }
    return true;
}

bool stek_ats_metric(const char *name, int64_t *value)
{
    int stat = -1;

    /* 9.2 has its metrics among the records, as integers or as counters. */
    if (stek_ats_mgmt_int(name, value) ||
        (HOST(TSMgmtCounterGet) != NULL &&
         HOST(TSMgmtCounterGet)(name, value) == HOST_SUCCESS)) {
        return true;
    }
    /* 10+ has them all in one place. In 9.2 the number of a metric that is no plugin's would be
     * taken for that of a plugin's, hence the C++ names alone. */
    if (cxx_TSStatFindName == NULL || cxx_TSStatIntGet == NULL ||
        cxx_TSStatFindName(name, &stat) != HOST_SUCCESS) {
        return false;
    }
    *value = cxx_TSStatIntGet(stat);
    return true;
}

int stek_ats_stat(const char *name)
{
    int stat = -1;

    if (HOST(TSStatFindName) == NULL || HOST(TSStatCreate) == NULL) {
        return -1;
    }
    if (HOST(TSStatFindName)(name, &stat) == HOST_SUCCESS) {
        return stat;
    }
    return HOST(TSStatCreate)(name, HOST_INT, HOST_NON_PERSISTENT, HOST_SYNC_SUM);
}

void stek_ats_stat_set(int stat, int64_t value)
{
    if (stat >= 0 && HOST(TSStatIntSet) != NULL) {
        HOST(TSStatIntSet)(stat, value);
    }
}
