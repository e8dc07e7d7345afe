/* Reads the plain form of safetensors headers and of model.safetensors.index.json, and collapses experts.
 *
 * It knows one spelling only, that of the official writers: names in ASCII without escapes; dtype, shape and
 * data_offsets in this order; tensors in the order of their data. Whatever else comes, it declines (returns None),
 * and the Python reader, which knows the whole format and words the errors, decides. It never accepts what that
 * reader refuses. The text is hostile: every read is checked against its end.
 */
#define PY_SSIZE_T_CLEAN
#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030B0000
#endif
#include <Python.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define NONE UINT32_MAX
#define LONGEST_NAME 65535
#define LONGEST_CHAIN 64    /* steps to find a name, and files it is spread over: more is not plain, and slow */
#define SPARSE_EXPERTS 1024 /* expert numbers may exceed eight times their count by this much */

typedef enum { ACCEPTED, DECLINED, NO_MEMORY } Verdict;

typedef struct { const char *at, *end; } Text;

typedef struct { /* tensors that differ only in their expert number; a plain name is a group of one */
    const char *name;            /* the first of them, in the text */
    const char *rest;            /* what follows the expert number: `after` bytes of the name, then `tail` bytes */
    const char *value, *shape;   /* dtype and shape in a header, the file in an index; shape: behind its `[` */
    uint64_t bytes;              /* of one tensor */
    uint32_t before, after;      /* bytes of the name before and after the expert number */
    uint32_t tail;               /* bytes from the name's closing quote on that all of the group share */
    uint32_t value_length, dtype;
    uint32_t count, first;       /* members, and where they start once arranged */
    uint32_t last, highest;      /* the member read last, the highest expert number */
    uint32_t twin;               /* another group of this name, in another file */
    uint32_t follower;           /* the group that came next the last time: usually right again */
    char numbered, head;
} Group;

typedef struct { uint64_t begin; uint32_t group, expert, previous; } Item;

typedef struct {
    Group *groups;
    Item *items;
    uint32_t *slots;             /* open addressing by name: group + 1 */
    uint32_t *experts;           /* of all groups, group by group, ascending; `begins` lies beside it */
    uint64_t *begins;
    uint32_t group_count, group_room, item_count, item_room, slot_count, previous;
    int is_index;
    const char *metadata;        /* the object of this name, unread */
    Py_ssize_t metadata_length;
} Table;

static const struct { const char *name; uint32_t bits; } DTYPES[] = {
    {"BOOL", 8}, {"F4", 4}, {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"U8", 8}, {"I8", 8}, {"F8_E5M2", 8}, {"F8_E4M3", 8},
    {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16}, {"U16", 16}, {"F16", 16}, {"BF16", 16},
    {"I32", 32}, {"U32", 32}, {"F32", 32}, {"C64", 64}, {"F64", 64}, {"I64", 64}, {"U64", 64},
};
#define DTYPE_COUNT (sizeof DTYPES / sizeof *DTYPES)

/* ------------------------------------------------------------------------------------------------ text */

static size_t left(const Text *text) { return (size_t)(text->end - text->at); }

static int sees(const Text *text, const char *literal, size_t length) {
    return left(text) >= length && memcmp(text->at, literal, length) == 0;
}

static void blanks(Text *text) {
    while (left(text) && (*text->at == ' ' || *text->at == '\n' || *text->at == '\r' || *text->at == '\t')) text->at++;
}

static int take(Text *text, char wanted) { /* one character, and the blanks around it */
    blanks(text);
    if (!left(text) || *text->at != wanted) return 0;
    text->at++;
    blanks(text);
    return 1;
}

static int take_key(Text *text, const char *key) { /* a quoted key and its colon, or nothing */
    Text ahead = *text;
    if (!sees(text, key, strlen(key))) return 0;
    ahead.at += strlen(key);
    if (!take(&ahead, ':')) return 0;
    *text = ahead;
    return 1;
}

static int take_number(Text *text, uint64_t *number) {
    const char *start = text->at;
    uint64_t value = 0;
    for (; left(text) && *text->at >= '0' && *text->at <= '9'; text->at++) {
        uint64_t digit = (uint64_t)(*text->at - '0');
        if (value > (UINT64_MAX - digit) / 10) return 0;
        value = value * 10 + digit;
    }
    *number = value;
    return text->at > start && (text->at - start == 1 || *start != '0');
}

/* A number that can be an expert's: at most nine digits, no leading zero. */
static int take_expert(Text *text, uint32_t *expert) {
    const char *start = text->at;
    uint64_t number;
    if (!take_number(text, &number) || text->at - start > 9) return 0;
    *expert = (uint32_t)number;
    return 1;
}

/* A quoted string of printable ASCII without escapes and braces; `start` and `length` are what stands in quotes. */
static int take_plain(Text *text, const char **start, uint32_t *length) {
    int odd = 0;
    if (!left(text) || *text->at++ != '"' || !left(text)) return 0;
    const char *quote = memchr(text->at, '"', left(text));
    if (!quote || quote - text->at > LONGEST_NAME) return 0;
    for (const char *c = text->at; c < quote; c++)
        odd |= (*c < ' ') | (*c > '~') | (*c == '\\') | (*c == '{') | (*c == '}');
    *start = text->at;
    *length = (uint32_t)(quote - text->at);
    text->at = quote + 1;
    return !odd;
}

/* Passes over an object that holds no array and no object; whether it is good JSON is for the caller to find out. */
static int take_metadata(Text *text, Table *table) {
    int quoted = 0;
    if (table->metadata || !left(text) || *text->at != '{') return 0;
    table->metadata = text->at++;
    for (; left(text); text->at++) {
        char c = *text->at;
        if (c == '"') quoted = !quoted;
        else if (quoted && c == '\\' && left(text) > 1) text->at++;
        else if (!quoted && (c == '{' || c == '[')) return 0;
        else if (!quoted && c == '}') {
            table->metadata_length = ++text->at - table->metadata;
            return 1;
        }
    }
    return 0;
}

/* ---------------------------------------------------------------------------------------------- groups */

static int grow(void **array, uint32_t *room, uint32_t count, size_t size) {
    uint32_t wider = *room ? *room * 2 : 64;
    if (count < *room) return 1;
    void *moved = *room > NONE / 4 ? NULL : realloc(*array, wider * size);
    if (!moved) return 0;
    *array = moved;
    *room = wider;
    return 1;
}

static uint64_t mixed(uint64_t hash, const char *bytes, uint32_t length) {
    for (uint32_t i = 0; i < length; i += 8) {
        uint64_t word = 0;
        memcpy(&word, bytes + i, length - i < 8 ? length - i : 8);
        hash = (hash ^ word) * 0x9E3779B97F4A7C15u;
        hash ^= hash >> 29;
    }
    return hash ^ (hash >> 32);
}

static int same_name(const Group *a, const Group *b) {
    return a->numbered == b->numbered && a->before == b->before && a->after == b->after &&
           memcmp(a->name, b->name, a->before) == 0 && memcmp(a->rest, b->rest, a->after) == 0;
}

static uint32_t *slot_of(const Table *table, const Group *group) { /* NULL: too many names fall on one place */
    uint64_t place = mixed(mixed(group->before, group->name, group->before), group->rest, group->after);
    for (int step = 0; step < LONGEST_CHAIN; step++, place++) {
        uint32_t *slot = &table->slots[place & (table->slot_count - 1)];
        if (!*slot || same_name(&table->groups[*slot - 1], group)) return slot;
    }
    return NULL;
}

static Verdict widen_slots(Table *table) {
    uint32_t *slot;
    free(table->slots);
    table->slot_count = table->slot_count ? table->slot_count * 4 : 1024;
    if (!(table->slots = calloc(table->slot_count, sizeof *table->slots))) return NO_MEMORY;
    for (uint32_t i = 0; i < table->group_count; i++) {
        if (!table->groups[i].head) continue;
        if (!(slot = slot_of(table, &table->groups[i]))) return DECLINED;
        *slot = i + 1;
    }
    return ACCEPTED;
}

/* Finds the group of this name and value, or makes it. A name that was there already is a duplicate, or not plain. */
static Verdict find_group(Table *table, Group *group, uint32_t *found) {
    if (table->group_count >= table->slot_count / 4) {
        Verdict verdict = widen_slots(table);
        if (verdict != ACCEPTED) return verdict;
    }
    uint32_t *slot = slot_of(table, group), last = NONE;
    if (!slot) return DECLINED;
    int steps = 0;
    for (uint32_t i = *slot ? *slot - 1 : NONE; i != NONE; last = i, i = table->groups[i].twin) {
        const Group *known = &table->groups[i];
        if (!group->numbered || ++steps > LONGEST_CHAIN) return DECLINED;
        *found = i;
        uint32_t length = group->value_length;
        if (known->value_length == length && memcmp(known->value, group->value, length) == 0) return ACCEPTED;
        if (!table->is_index) return DECLINED;
    }
    if (!grow((void **)&table->groups, &table->group_room, table->group_count, sizeof *group)) return NO_MEMORY;
    *found = table->group_count++;
    group->twin = group->last = NONE;
    group->follower = *found + 1;
    group->head = last == NONE;
    table->groups[*found] = *group;
    if (last == NONE) *slot = *found + 1;
    else table->groups[last].twin = *found;
    return ACCEPTED;
}

/* Splits a name at the number behind its last ".experts." that is followed by a dot. */
static void split_name(Group *group, const char *name, uint32_t length, uint32_t *expert) {
    static const char word[] = ".experts.";
    const char *end = name + length;
    group->name = name;
    group->before = length;
    group->rest = end;
    *expert = 0;
    for (const char *at = end; at-- > name;) {
        Text digits = {at, end};
        if (*at != '.' || !sees(&digits, word, sizeof word - 1)) continue;
        digits.at += sizeof word - 1;
        group->before = (uint32_t)(digits.at - name);
        if (take_expert(&digits, expert) && sees(&digits, ".", 1)) {
            group->rest = digits.at;
            group->after = (uint32_t)(end - digits.at);
            group->numbered = 1;
            return;
        }
        group->before = length;
        *expert = 0;
    }
}

/* Whether the text continues with a member of the group that is expected; if so, moves behind what they share. */
static int follow(Text *text, const Table *table, uint32_t guess, uint32_t *expert) {
    Text ahead = *text;
    if (guess >= table->group_count || !table->groups[guess].numbered) return 0;
    const Group *group = &table->groups[guess];
    if (!sees(&ahead, group->name - 1, group->before + 1)) return 0;
    ahead.at += group->before + 1;
    if (!take_expert(&ahead, expert) || !sees(&ahead, group->rest, (size_t)group->after + group->tail)) return 0;
    ahead.at += (size_t)group->after + group->tail;
    *text = ahead;
    return 1;
}

/* Sorts the members of every group by expert number; a number that comes twice under one name is a duplicate. */
static Verdict arrange(Table *table) {
    Verdict verdict = ACCEPTED;
    uint32_t cursor = 0, room = 0, *places = NULL; /* item + 1 by expert number, of one name at a time */
    table->experts = malloc(((size_t)table->item_count + 1) * sizeof *table->experts);
    table->begins = malloc(((size_t)table->item_count + 1) * sizeof *table->begins);
    if (!table->experts || !table->begins) return NO_MEMORY;
    for (uint32_t head = 0; verdict == ACCEPTED && head < table->group_count; head++) {
        uint32_t highest = 0, members = 0;
        if (!table->groups[head].head) continue;
        for (uint32_t i = head; i != NONE; i = table->groups[i].twin) {
            members += table->groups[i].count;
            if (table->groups[i].highest > highest) highest = table->groups[i].highest;
        }
        if (highest / 8 > members + SPARSE_EXPERTS / 8) { verdict = DECLINED; break; }
        if (highest >= room) {
            free(places);
            room = highest * 2 + 512;
            if (!(places = calloc(room, sizeof *places))) { verdict = NO_MEMORY; break; }
        }
        for (uint32_t i = head; i != NONE; i = table->groups[i].twin) {
            for (uint32_t item = table->groups[i].last; item != NONE; item = table->items[item].previous) {
                uint32_t *place = &places[table->items[item].expert];
                if (*place) verdict = DECLINED;
                *place = item + 1;
            }
            table->groups[i].first = cursor;
            cursor += table->groups[i].count;
            table->groups[i].count = 0; /* and rises again below */
        }
        for (uint32_t expert = 0; expert <= highest; expert++) {
            if (!places[expert]) continue;
            const Item *item = &table->items[places[expert] - 1];
            Group *group = &table->groups[item->group];
            table->experts[group->first + group->count] = expert;
            table->begins[group->first + group->count++] = item->begin;
            places[expert] = 0;
        }
    }
    free(places);
    return verdict;
}

/* --------------------------------------------------------------------------------------------- reading */

/* Reads `:{"dtype":"..","shape":[..],"data_offsets":[` behind a name. */
static int take_kind(Text *text, Group *group) {
    uint64_t elements = 1, dim;
    if (!take(text, ':') || !take(text, '{') || !take_key(text, "\"dtype\"")) return 0;
    if (!take_plain(text, &group->value, &group->value_length)) return 0;
    for (group->dtype = 0; group->dtype < DTYPE_COUNT; group->dtype++)
        if (strlen(DTYPES[group->dtype].name) == group->value_length &&
            memcmp(DTYPES[group->dtype].name, group->value, group->value_length) == 0) break;
    if (group->dtype == DTYPE_COUNT || !take(text, ',') || !take_key(text, "\"shape\"") || !take(text, '[')) return 0;
    group->shape = text->at;
    while (left(text) && *text->at != ']') {
        if ((text->at != group->shape && !take(text, ',')) || !take_number(text, &dim)) return 0;
        if (elements && dim > UINT64_MAX / elements) return 0;
        elements *= dim;
        blanks(text);
    }
    if (text->at - group->value > LONGEST_NAME) return 0;
    group->value_length = (uint32_t)(text->at - group->value);
    if (elements > UINT64_MAX / DTYPES[group->dtype].bits || elements * DTYPES[group->dtype].bits % 8) return 0;
    group->bytes = elements * DTYPES[group->dtype].bits / 8;
    return take(text, ']') && take(text, ',') && take_key(text, "\"data_offsets\"") && take(text, '[');
}

/* Reads one member: `"name": {..}` of a header that continues at byte `end`, or `"name": "file"` of an index. */
static Verdict take_member(Text *text, Table *table, uint64_t *end) {
    uint64_t begin = 0, stop;
    uint32_t found = table->previous == NONE ? NONE : table->groups[table->previous].follower, expert;
    if (!follow(text, table, found, &expert)) {
        Group group = {0};
        const char *name;
        uint32_t length;
        if (!take_plain(text, &name, &length)) return DECLINED;
        split_name(&group, name, length, &expert);
        if (!table->is_index) {
            if (!take_kind(text, &group)) return DECLINED;
        } else if (!take(text, ':') || !take_plain(text, &group.value, &group.value_length)) return DECLINED;
        if (text->at - name > 4 * LONGEST_NAME) return DECLINED;
        group.tail = (uint32_t)(text->at - name) - length;
        Verdict verdict = find_group(table, &group, &found);
        if (verdict != ACCEPTED) return verdict;
        if (table->previous != NONE) table->groups[table->previous].follower = found;
    }
    table->previous = found;
    if (!table->is_index) {
        if (!take_number(text, &begin) || !take(text, ',') || !take_number(text, &stop)) return DECLINED;
        if (!take(text, ']') || !take(text, '}')) return DECLINED;
        if (begin != *end || stop < begin || stop - begin != table->groups[found].bytes) return DECLINED;
        *end = stop;
    }
    if (!grow((void **)&table->items, &table->item_room, table->item_count, sizeof(Item))) return NO_MEMORY;
    Group *group = &table->groups[found];
    table->items[table->item_count] = (Item){begin, found, expert, group->last};
    group->last = table->item_count++;
    group->count++;
    if (expert > group->highest) group->highest = expert;
    return ACCEPTED;
}

/* Reads the members of an object behind its `{`, in a header the metadata among them, and the `}`. */
static Verdict take_members(Text *text, Table *table, uint64_t *end) {
    if (take(text, '}')) return ACCEPTED;
    do {
        if (!table->is_index && take_key(text, "\"__metadata__\"")) {
            if (!take_metadata(text, table)) return DECLINED;
            continue;
        }
        Verdict verdict = take_member(text, table, end);
        if (verdict != ACCEPTED) return verdict;
    } while (take(text, ','));
    return take(text, '}') ? ACCEPTED : DECLINED;
}

static Verdict read_text(Text text, Table *table, uint64_t data_size) {
    Verdict verdict = DECLINED;
    uint64_t end = 0;
    if (!take(&text, '{')) return DECLINED;
    if (!table->is_index) {
        verdict = take_members(&text, table, &end);
    } else {
        do {
            if (take_key(&text, "\"metadata\"")) {
                if (!take_metadata(&text, table)) return DECLINED;
            } else if (verdict == ACCEPTED || !take_key(&text, "\"weight_map\"") || !take(&text, '{')) {
                return DECLINED;
            } else if ((verdict = take_members(&text, table, &end)) != ACCEPTED) {
                return verdict;
            }
        } while (take(&text, ','));
        if (!take(&text, '}')) return DECLINED;
    }
    if (verdict != ACCEPTED) return verdict;
    return left(&text) || end != data_size ? DECLINED : arrange(table);
}

/* ---------------------------------------------------------------------------------------------- Python */

/* (before, after, file, experts) or (before, after, dtype, shape, experts, begins); a plain name has no `after`. */
static PyObject *row_of(const Table *table, const Group *group) {
    const char *after = group->numbered ? group->rest : NULL;
    const char *experts = group->numbered ? (const char *)(table->experts + group->first) : NULL;
    const char *begins = (const char *)(table->begins + group->first);
    Py_ssize_t count = (Py_ssize_t)group->count, lengths[3] = {group->before, group->after, group->value_length};
    if (table->is_index)
        return Py_BuildValue("(s#s#s#y#)", group->name, lengths[0], after, lengths[1], group->value, lengths[2],
                             experts, count * 4);
    return Py_BuildValue("(s#s#ss#y#y#)", group->name, lengths[0], after, lengths[1], DTYPES[group->dtype].name,
                         group->shape, group->value + lengths[2] - group->shape, experts, count * 4, begins, count * 8);
}

static PyObject *read_bytes(PyObject *bytes, uint64_t data_size, int is_index) {
    Table table = {.is_index = is_index, .previous = NONE};
    Verdict verdict;
    char *start;
    Py_ssize_t length;
    PyObject *rows = NULL, *result = NULL;
    if (PyBytes_AsStringAndSize(bytes, &start, &length) < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS /* the caller holds a reference to the bytes, and nothing else is touched */
    verdict = read_text((Text){start, start + length}, &table, data_size);
    Py_END_ALLOW_THREADS
    if (verdict == ACCEPTED) rows = PyList_New(0);
    for (uint32_t i = 0; rows && i < table.group_count; i++) {
        PyObject *row = row_of(&table, &table.groups[i]);
        if (!row || PyList_Append(rows, row) < 0) Py_CLEAR(rows);
        Py_XDECREF(row);
    }
    if (rows) result = Py_BuildValue("(y#N)", table.metadata, table.metadata_length, rows);
    else if (verdict == DECLINED) result = Py_NewRef(Py_None);
    else if (verdict == NO_MEMORY) PyErr_NoMemory();
    free(table.groups);
    free(table.items);
    free(table.slots);
    free(table.experts);
    free(table.begins);
    return result;
}

static PyObject *parse_header(PyObject *module, PyObject *args) {
    PyObject *bytes;
    unsigned long long data_size;
    (void)module;
    if (!PyArg_ParseTuple(args, "SK", &bytes, &data_size)) return NULL;
    return read_bytes(bytes, data_size, 0);
}

static PyObject *parse_index(PyObject *module, PyObject *bytes) {
    (void)module;
    return read_bytes(bytes, 0, 1);
}

static PyMethodDef methods[] = {
    {"parse_header", parse_header, METH_VARARGS,
     "parse_header(raw, data_size): (metadata, [(before, after, dtype, shape, experts, begins)]), or None to decline."},
    {"parse_index", parse_index, METH_O, "parse_index(raw): (metadata, [(before, after, file, experts)]), or None."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "_fastheader", .m_doc = "The plain form of headers and indexes, read fast.",
    .m_methods = methods, .m_slots = slots,
};

PyMODINIT_FUNC PyInit__fastheader(void) { return PyModuleDef_Init(&definition); }
