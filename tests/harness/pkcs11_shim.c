/* A PKCS #11 library: SoftHSM's, but with LAST_TRY its tokens say that another wrong PIN locks them,
 * and with EACH_US they make one signature after another, in so many microseconds each. */
#include <dlfcn.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

/* CK_FUNCTION_LIST of PKCS #11 v2.40: a version, and 68 functions. */
struct list {
    unsigned char version[2];
    void *functions[68];
};
enum { GET_TOKEN_INFO = 6, SIGN = 43 };

static struct list changed;

#ifdef LAST_TRY
static unsigned long (*original_info)(unsigned long, unsigned char *);

static unsigned long last_try(unsigned long slot, unsigned char *info)
{
    unsigned long flags, result = original_info(slot, info);
    /* CK_TOKEN_INFO: four texts of 96 bytes together, then the flags. */
    memcpy(&flags, info + 96, sizeof flags);
    flags |= 0x00020000; /* CKF_USER_PIN_FINAL_TRY */
    memcpy(info + 96, &flags, sizeof flags);
    return result;
}
#endif

#ifdef EACH_US
static unsigned long (*original_sign)(unsigned long, void *, unsigned long, void *, void *);
static pthread_mutex_t token = PTHREAD_MUTEX_INITIALIZER;

static unsigned long slow_sign(unsigned long session, void *data, unsigned long length,
                               void *signature, void *signature_length)
{
    /* Without a place for the signature, only its length is asked for. */
    if (signature) {
        pthread_mutex_lock(&token);
        usleep(EACH_US);
        pthread_mutex_unlock(&token);
    }
    return original_sign(session, data, length, signature, signature_length);
}
#endif

unsigned long C_GetFunctionList(struct list **list)
{
    void *library = dlopen(SOFTHSM, RTLD_NOW);
    unsigned long (*original)(struct list **) = dlsym(library, "C_GetFunctionList");
    unsigned long result = original(list);
    changed = **list;
#ifdef LAST_TRY
    original_info = changed.functions[GET_TOKEN_INFO];
    changed.functions[GET_TOKEN_INFO] = last_try;
#endif
#ifdef EACH_US
    original_sign = changed.functions[SIGN];
    changed.functions[SIGN] = slow_sign;
#endif
    *list = &changed;
    return result;
}
