// Memory of the calling thread from call to call, in huge pages: that of the system comes in pages to be cleared.

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

#define HUGE_PAGE 2097152 // bytes

typedef struct {
    int64_t size;
    char *data;
} Workspace;

static pthread_key_t workspace_key;
static pthread_once_t workspace_once = PTHREAD_ONCE_INIT;

static void free_workspace(void *workspace) {
    free(((Workspace *)workspace)->data);
    free(workspace);
}

static void make_workspace_key(void) { pthread_key_create(&workspace_key, free_workspace); }

// At least so many bytes, or NULL where there are none. They are the thread's until it ends.
char *convnext_workspace(int64_t size) {
    pthread_once(&workspace_once, make_workspace_key);
    Workspace *own = pthread_getspecific(workspace_key);
    if (!own) {
        own = calloc(1, sizeof *own);
        if (!own || pthread_setspecific(workspace_key, own)) {
            free(own);
            return NULL;
        }
    }
    if (own->size < size) {
        free(own->data);
        size = (size + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
        own->data = aligned_alloc(HUGE_PAGE, size);
        own->size = own->data ? size : 0;
        if (own->data) madvise(own->data, size, MADV_HUGEPAGE);
    }
    return own->data;
}
