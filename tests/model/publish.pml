/* Row 4: a grant publishes exactly the epoch after the one it read, or nothing.
 *
 * A node is granted by the authority, reads the highest epoch H, asks the authority again whether the
 * grant still stands, and links epoch/H+1. If that name exists, a newer grant acted: the node drops
 * its own. The authority may take a grant back and give the next at any moment.
 *
 * Promise: in the order of epochs, the grants only grow: no stale grant supersedes a newer owner.
 *
 * Wrong: NEXT_FREE      the name exists: try the next number under the same grant
 *        CONFIRM_FIRST  asks the authority before it reads the highest epoch
 */
#define NODES 3
#define EPOCHS 4
#define GRANTS 4

byte newest_grant = 0;         /* the authority's numbers; only the newest stands */
byte made_by[EPOCHS + 2];      /* epoch/N: the grant that linked it, 0 while there is none */

inline read_highest() {
  d_step {
    h = EPOCHS;
    do
    :: h > 0 && made_by[h] == 0 -> h--
    :: else -> break
    od;
    skip
  }
}

inline confirm() {
  if
  :: newest_grant != grant -> goto drop
  :: newest_grant == grant
  fi
}

inline check() {
  d_step {
    n = 1;
    do
    :: n < EPOCHS -> assert(made_by[n + 1] == 0 || made_by[n] < made_by[n + 1]); n++
    :: else -> break
    od;
    n = 0
  }
}

proctype node() {
  byte grant = 0, h = 0, n = 0;
  do
  :: atomic { newest_grant < GRANTS -> newest_grant++; grant = newest_grant };
#ifdef CONFIRM_FIRST
     confirm();
     read_highest();
#else
     read_highest();
     confirm();
#endif
#ifdef NEXT_FREE
     do
     :: atomic { h < EPOCHS && made_by[h + 1] != 0 -> h++ }
     :: atomic { h < EPOCHS && made_by[h + 1] == 0 -> made_by[h + 1] = grant; check(); break }
     :: h == EPOCHS -> break
     od;
#else
     atomic {
       if
       :: h < EPOCHS && made_by[h + 1] == 0 -> made_by[h + 1] = grant; check()
       :: else                  /* EEXIST */
       fi
     };
#endif
drop:
     atomic { grant = 0; h = 0 }
  :: newest_grant == GRANTS -> break
  od
}

init {
  atomic {
    byte i = 0;
    do
    :: i < NODES -> run node(); i++
    :: else -> break
    od
  }
}
